"""What tells one model family from another, as rows of one table. No tensors, no files.

A new family that fits the decoder is a new row; a new idea is a new column and a few lines in `decoder`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Deviations from a plain Llama. `defaults` are the values a config.json of this family may leave out."""

    qkv_bias: bool = False  # always there, whatever attention_bias says
    qk_norm: bool = False  # RMSNorm over each head of q and k, before the rotation
    norm_offset: bool = False  # norm weights are stored around 0: y = x̂ · (1 + w)
    post_norms: bool = False  # norms after attention and after the MLP as well
    scaled_embedding: bool = False  # embeddings are multiplied by √hidden_size
    softcaps: bool = False  # reads attn_logit_softcapping and final_logit_softcapping
    query_scalar: bool = False  # attention scale is query_pre_attn_scalar^-½
    windows: str = "none"  # none, all, optional (use_sliding_window), pattern
    local_theta: bool = False  # sliding layers rotate with a base of their own, unscaled
    defaults: Mapping[str, object] = field(default_factory=dict)


_GEMMA: Final[dict[str, object]] = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
}
_GEMMA2: Final[dict[str, object]] = {
    **_GEMMA,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3: Final[dict[str, object]] = {
    **_GEMMA2,
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
FAMILIES: Final[dict[str, Family]] = {
    "llama": Family(),
    "mistral": Family(windows="all", defaults={"sliding_window": None}),
    "qwen2": Family(qkv_bias=True, windows="optional"),
    "qwen3": Family(qk_norm=True, windows="optional", defaults={"head_dim": 128}),
    "gemma": Family(norm_offset=True, scaled_embedding=True, defaults=_GEMMA),
    "gemma2": Family(
        norm_offset=True,
        scaled_embedding=True,
        post_norms=True,
        softcaps=True,
        query_scalar=True,
        windows="pattern",
        defaults=_GEMMA2,
    ),
    "gemma3_text": Family(
        norm_offset=True,
        scaled_embedding=True,
        post_norms=True,
        softcaps=True,
        query_scalar=True,
        qk_norm=True,
        windows="pattern",
        local_theta=True,
        defaults=_GEMMA3,
    ),
}
