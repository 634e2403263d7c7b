"""What the decoder asks of a device: the parts between its matrix products. Chosen once, at construction.

Shapes: T tokens of a step, N of them real, H query heads, K kv heads, D head_dim. `Pool` is the KV memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from compute.batch import Batch
from compute.model.rope import RotaryTable

if TYPE_CHECKING:
    from compute.model.layer import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """One layer's attention: what comes between the qkv product and the output product."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None
    rope: RotaryTable  # shared by layers: the same object, the same rows
    q_norm: Tensor | None  # [D] float32
    k_norm: Tensor | None
    norm_eps: float


class Stack(Protocol):
    """All layers of a step at once."""

    def takes(self, step: Any) -> bool:
        """Whether this step is one that it runs."""
        ...

    def __call__(self, h: Tensor, residual: Tensor, step: Any) -> Tensor:
        """h [T, E]: the first norm's output; the last norm's comes back. residual [T, E] is changed in place."""
        ...


class Kernels(Protocol):
    """One implementation per device; each method runs once or more a layer. `step` is the implementation's own."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm of x [T, E] with weight [E] float32, as a new tensor."""
        ...

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x in place, then its norm as a new tensor."""
        ...

    def gate(self, x: Tensor, activation: str) -> Tensor:
        """[T, 2F] → [T, F]: activation(left half) · right half."""
        ...

    def attend(self, spec: AttentionSpec, qkv: Tensor, step: Any) -> Tensor:
        """qkv [T, (H + 2K)·D] → [T, H·D]. Norms and rotates q and k, writes k and v to their slots, attends."""
        ...

    def stack(
        self, layers: "Sequence[Layer]", next_norms: Sequence[Tensor], activation: str, eps: float
    ) -> Stack | None:
        """A faster way through all layers for some steps, if this device has one. next_norms: after each layer."""
        ...


class HostKernels(Kernels, Protocol):
    """The CPU's: a step is made from a batch."""

    def prepare(self, batch: Batch, pool: Tensor, specs: list[AttentionSpec]) -> Any:
        """What all layers of the step share: index rows, masks, rotations."""
        ...
