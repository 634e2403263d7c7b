"""One step on this device: copies, the model, the rows' logits, their tokens. And how a model gets loaded.

Owns the order of a step and what a row's failure is. Which rows, which slots and when is the scheduler's; how a
token is drawn is the sampler's.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from compute.batch import ROW_GRID, Batch, build
from compute.kernels import choose
from compute.logprobs import prompt_logprobs
from compute.model.decoder import Decoder, Progress
from compute.model_config import ModelConfig
from compute.plan import CopyOrder, Logprob, RowResult, StepPlan, StepResult, StepRow
from compute.progress import progress_bar
from compute.sampler import Drawn, Sampler
from compute.weights import Checkpoint, Dummy
from kvmanager.messages import SequenceId

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_CARRIED: Final = 1024


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
        self.sampler = sampler
        # The last hidden state of a prompt's former chunk: it predicts the first token of the next.
        self.carried: OrderedDict[SequenceId, tuple[int, Tensor]] = OrderedDict()

    @property
    def block_size(self) -> int:
        return int(self.pool.shape[4])

    @property
    def depth(self) -> int:
        """One step after the other: the cores that would build the next are busy with this one."""
        return 1

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
        hidden = self.model.forward(batch, self.pool)
        drawn = self.draw(plan.rows, batch, hidden)
        return StepResult(
            [
                self.result(row, drawn.get(i), start, hidden)
                for i, (row, start) in enumerate(zip(plan.rows, batch.row_starts, strict=True))
            ]
        )

    def copy(self, copies: Sequence[CopyOrder]) -> None:
        for order in copies:
            self.pool[order.destination, :, :, :, : order.slots] = self.pool[
                order.source, :, :, :, : order.slots
            ]

    def draw(self, rows: Sequence[StepRow], batch: Batch, hidden: Tensor) -> dict[int, Drawn]:
        """What each row that samples drew, by index of the row."""
        wanted = [i for i, row in enumerate(rows) if row.sample]
        if not wanted:
            return {}
        lasts = [batch.row_starts[i] + len(rows[i].token_ids) - 1 for i in wanted]
        drawn = self.sampler.sample(self.logits(hidden, lasts), [rows[i] for i in wanted])
        return dict(zip(wanted, drawn, strict=True))

    def logits(self, hidden: Tensor, places: Sequence[int]) -> Tensor:
        """[n, V] for n rows of hidden; the product runs on a multiple of ROW_GRID rows (see `batch`)."""
        padding = [places[0]] * (-len(places) % ROW_GRID)
        chosen = hidden[torch.tensor([*places, *padding], device=hidden.device)]
        return self.model.logits(chosen)[: len(places)]

    def result(self, row: StepRow, drawn: Drawn | None, start: int, hidden: Tensor) -> RowResult:
        scores = self.score_prompt(row, start, hidden) if row.prompt_logprobs else ()
        if drawn is None:
            return RowResult(prompt_logprobs=scores)
        if drawn.error is not None:
            return RowResult(error=drawn.error)
        return RowResult(token_id=drawn.token_id, logprob=drawn.logprob, prompt_logprobs=scores)

    def score_prompt(self, row: StepRow, start: int, hidden: Tensor) -> Sequence[Logprob]:
        """Log-probabilities of the chunk's prompt tokens: each is predicted by the position before it.

        chunk      a b c | d e f          hidden of c is carried over to score d
        predicts   b c d | e f
        """
        if row.start >= row.prompt_len:
            return ()
        end = min(row.start + len(row.token_ids), row.prompt_len)
        states = hidden[start : start + end - row.start - 1]  # they predict positions row.start + 1 .. end
        first = row.start + 1
        position, last = self.carried.pop(row.sequence, (-1, None))
        if last is not None and position == row.start:
            states, first = torch.cat((last, states)), row.start
        if end < row.prompt_len:
            self.carry(row.sequence, end, hidden[start + end - row.start - 1])
        if not len(states):
            return ()
        places = range(len(states))
        return prompt_logprobs(self.logits(states, places), row.history[first:end], row.prompt_logprobs)

    def carry(self, sequence: SequenceId, position: int, state: Tensor) -> None:
        self.carried[sequence] = (position, state.clone().unsqueeze(0))
        if len(self.carried) > MAX_CARRIED:  # left by sequences that ended within their prompt
            self.carried.popitem(last=False)


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
        dummy = Dummy(seed, dtype, norm_offset=config.family.norm_offset)
        return Decoder(config, dummy, kernels, device, progress)
    checkpoint = Checkpoint(folder, dtype)
    try:
        model = Decoder(config, checkpoint, kernels, device, progress)
        checkpoint.reject_unexpected(tied=config.tied)
        return model
    finally:
        checkpoint.close()


def resolve_dtype(config: ModelConfig, dtype: str, device: str = "cpu") -> str:
    """The dtype that `auto` means: bfloat16 where the device multiplies it natively, else float32.

    A model stored as float32 is run as float32. float16 on the CPU has no fast path, so auto never picks it there.
    """
    if dtype != "auto":
        return dtype
    if device != "cpu":
        return "bfloat16" if config.dtype is None else config.dtype
    if config.dtype == "float32":
        return "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"
