"""Where weights come from: a folder of safetensors, or a seed. One tensor at a time, never pickle.

Owns: files, shards, names found and names missed, casting. Which names a model has is `model.decoder`'s matter.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

CPU: Final = torch.device("cpu")
MAX_INDEX_BYTES: Final = 64 * 2**20
FLOATS: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Prefixes of the tensors of a decoder, by the wrapper that wrote them.
PREFIXES: Final = ("model.", "language_model.model.", "model.language_model.")
# Parts of a checkpoint that a text decoder does not use.
UNUSED: Final = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
UNUSED_SUFFIX: Final = ".rotary_emb.inv_freq"  # computed, though older checkpoints carry it


class WeightsError(ValueError):
    """The folder's weights do not fit its config.json; the message names the tensor or the file."""


class Source(Protocol):
    """Gives each named tensor once, in the dtype asked for at construction."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor: ...

    def close(self) -> None: ...


class Checkpoint:
    """The safetensors of a folder: model.safetensors, or the shards that model.safetensors.index.json names."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.stack = ExitStack()
        self.where: dict[str, Any] = {}
        for path in shard_paths(folder):
            shard = self._open(path)
            self.where |= dict.fromkeys(shard.keys(), shard)
        self.prefix = next((p for p in PREFIXES if p + "embed_tokens.weight" in self.where), PREFIXES[0])
        self.taken: set[str] = set()

    def _open(self, path: Path) -> Any:
        try:
            return self.stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read {path}: {error}") from None

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = name if name.startswith("lm_head") else self.prefix + name
        if full not in self.where and name.startswith("lm_head"):
            full = "language_model." + name
        if full not in self.where:
            raise WeightsError(f"tensor {full} is missing")
        found = self.where[full].get_slice(full)
        if tuple(found.get_shape()) != shape:
            raise WeightsError(
                f"tensor {full} has shape {found.get_shape()}, config.json asks for {list(shape)}"
            )
        tensor: Tensor = self.where[full].get_tensor(full)
        if tensor.dtype not in FLOATS:
            raise WeightsError(
                f"tensor {full} has dtype {tensor.dtype}; only float32, float16 and bfloat16 are read"
            )
        self.taken.add(full)
        return tensor.to(self.dtype)

    def reject_unexpected(self, *, tied: bool) -> None:
        """WeightsError if a tensor of the decoder was never taken: the config describes another model."""
        left = [
            name
            for name in self.where
            if name not in self.taken and not name.startswith(UNUSED) and not name.endswith(UNUSED_SUFFIX)
        ]
        left = [name for name in left if not (tied and name.endswith("lm_head.weight"))]
        if left:
            raise WeightsError(f"unexpected tensors, {len(left)} in all: {', '.join(sorted(left)[:4])}")

    def close(self) -> None:
        self.where.clear()
        self.stack.close()


class Dummy:
    """Random weights, a function of (seed, name) and the kind of device, which draws them: for benchmarks and tests of
    a model's shape."""

    def __init__(
        self, seed: int, dtype: torch.dtype, *, norm_offset: bool, device: torch.device = CPU
    ) -> None:
        self.seed = seed
        self.device = device
        self.dtype = dtype
        self.norm = 0.0 if norm_offset else 1.0

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.full(shape, self.norm, dtype=self.dtype, device=self.device)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(
            int.from_bytes(digest[:8], "little", signed=True)
        )
        # Products keep the scale of their input; embeddings have the usual 0.02.
        scale = 0.02 if len(shape) == 1 or "embed" in name else shape[-1] ** -0.5
        drawn = torch.empty(shape, device=self.device).normal_(0.0, scale, generator=generator)
        return drawn.to(self.dtype)

    def close(self) -> None:
        pass


def shard_paths(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise WeightsError(f"{folder} has neither model.safetensors nor {index.name}")
        return [single]
    names = sorted(set(_index_files(index)))
    for name in names:
        if Path(name).name != name or not (folder / name).exists():
            raise WeightsError(f"{index} names {name!r}, which is no file of the folder")
    return [folder / name for name in names]


def _index_files(index: Path) -> Iterator[str]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise WeightsError(f"{index} is larger than {MAX_INDEX_BYTES} bytes")
        weight_map = json.loads(index.read_text("utf8")).get("weight_map")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"cannot read {index}: {error}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map of names")
    yield from weight_map.values()
