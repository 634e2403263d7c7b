"""One step on the CPU: copies, the model, the rows' tokens. And how a model gets loaded, on any device.

Owns the order of a step. Which rows, which slots and when is the scheduler's; what comes of the hidden states is
`readout`'s.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from compute.batch import build
from compute.kernels import choose
from compute.kernels.interface import HostKernels
from compute.model.decoder import Decoder, Progress
from compute.model_config import ModelConfig
from compute.plan import CopyOrder, StepPlan, StepResult
from compute.progress import progress_bar
from compute.readout import Readout
from compute.sampler import Sampler
from compute.weights import Checkpoint, Dummy

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Runner:
    """Runs step plans of one model over one pool.

    `pool` is [num_blocks, L, 2, K, block_size, D] of the model's dtype: the KV memory itself, not a copy.
    """

    def __init__(self, model: Decoder, pool: Tensor, sampler: Sampler) -> None:
        config = model.config
        expected = (config.num_layers, 2, config.num_kv_heads, pool.shape[4], config.head_dim)
        assert tuple(pool.shape[1:]) == expected, f"pool {tuple(pool.shape)}, model {expected}"
        assert pool.dtype == model.dtype
        assert pool.is_contiguous()
        self.model = model
        self.pool = pool
        self.readout = Readout(model, sampler)

    @property
    def block_size(self) -> int:
        return int(self.pool.shape[4])

    @property
    def kernels(self) -> HostKernels:
        return cast("HostKernels", self.model.kernels)  # a model loaded on the CPU has the CPU's

    @property
    def depth(self) -> int:
        """One step after the other: the cores that would build the next are busy with this one."""
        return 1

    def prepare(self) -> None:
        """Nothing is compiled ahead."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """See `compute.worker.Steps`: the step runs in the call that waits for it."""
        return partial(self.run, plan)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Computes a step and blocks until it is done. A row that cannot go on has `error` set and no token."""
        self.copy(plan.copies)
        if not plan.rows:
            return StepResult(())
        batch = build(plan, self.block_size, self.model.device)
        step = self.kernels.prepare(batch, self.pool, self.model.specs)
        hidden = self.model.forward(batch.token_ids, step)
        return StepResult(self.readout.results(plan.rows, batch.row_starts, hidden))

    def copy(self, copies: Sequence[CopyOrder]) -> None:
        for order in copies:
            self.pool[order.destination, :, :, :, : order.slots] = self.pool[
                order.source, :, :, :, : order.slots
            ]


def load(  # noqa: PLR0917 - the order of the flags
    folder: str | Path,
    dtype: str = "auto",
    device: str = "cpu",
    load_format: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Decoder:
    """The model of a Hugging Face folder, ready to run.

    `dtype`: float32, bfloat16, float16 or auto (`resolve_dtype`). `load_format` auto reads the folder's
    safetensors; dummy draws random weights from `seed`. ModelConfigError and WeightsError say what does not fit.
    """
    config = ModelConfig.from_folder(folder)
    kind = DTYPES[resolve_dtype(config, dtype, device)]
    where = torch.device(device)
    with torch.inference_mode(), progress_bar("loading weights") as bar:
        return _load(Path(folder), config, kind, where, load_format, seed, progress or bar)


def _load(  # noqa: PLR0917 - what `load` was given, resolved
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    load_format: str,
    seed: int,
    progress: Progress,
) -> Decoder:
    kernels = choose(config, dtype, device)
    if load_format == "dummy":
        dummy = Dummy(seed, dtype, norm_offset=config.family.norm_offset, device=device)
        return Decoder(config, dummy, kernels, device, progress)
    checkpoint = Checkpoint(folder, dtype)
    try:
        model = Decoder(config, checkpoint, kernels, device, progress)
        checkpoint.reject_unexpected(tied=config.tied)
        return model
    finally:
        checkpoint.close()


def resolve_dtype(config: ModelConfig, dtype: str, device: str = "cpu") -> str:
    """The dtype that `auto` means: on a GPU the model's own if it has 16 bits, else bfloat16; on the CPU bfloat16 where
    it multiplies that natively, else float32.

    On the CPU a model stored as float32 is run as float32, and float16 has no fast path, so auto never picks it there.
    """
    if dtype != "auto":
        return dtype
    if device != "cpu":
        return config.dtype if config.dtype in {"bfloat16", "float16"} else "bfloat16"
    if config.dtype == "float32":
        return "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"
