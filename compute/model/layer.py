"""One layer's weights, as the decoder and the kernels that run whole layers read them."""

from dataclasses import dataclass

from torch import Tensor

from compute.kernels.interface import AttentionSpec
from compute.model.linear import Linear


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights. Post norms are None where the family has none."""

    spec: AttentionSpec
    attention_norm: Tensor
    qkv: Linear  # [E] → [(H + 2K)·D]
    output: Linear
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Linear  # [E] → [2F]
    down: Linear
    post_mlp_norm: Tensor | None
