"""Runs step plans on a GPU, two steps deep: the next one is built and launched while this one runs.

    host     write ring, launch n+1 │ wait for n │ … advance n, plan n+2 … │ write ring, launch n+2 │ wait for n+1
    device   ……… step n ……………………… │ ………………………… step n+1 ………………………………………………………………… │ step n+2

Steps whose rows all have one token replay a graph; others are launched kernel by kernel. Nothing waits for the device
but one event a step. A row whose wishes the device does not know (penalties, bias, bans, log-probabilities, forks,
beams) is drawn by the host, within `launch`: the scheduler plans nothing ahead of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from compute.gpu.frame import Arrays, Frame, aligned
from compute.gpu.graphs import Graphs
from compute.gpu.inbox import Inbox
from compute.gpu.ring import Sizes
from compute.gpu.stream import stream_of
from compute.kernels.cuda import Step
from compute.kernels.gpu.copy_blocks import copy_blocks
from compute.kernels.gpu.sample import NOT_FINITE, NOTHING_TO_DRAW, Draws, SampleScratch, sample
from compute.model.decoder import Decoder
from compute.penalties import touched
from compute.plan import CopyOrder, RowResult, StepPlan, StepResult, StepRow
from compute.readout import Readout
from compute.sampler import Sampler
from compute.scheduler import Limits

DRAWS: Final = [field.name for field in fields(Draws)]
FAULTS: Final = {
    NOT_FINITE: "the model's logits are not finite",
    NOTHING_TO_DRAW: "no token can be drawn: every one is banned or has probability 0",
}


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way. `order`: the ring's row of each row of the plan."""

    wait: Callable[[], object]
    half: int
    order: Sequence[int]
    draws: Sequence[bool]  # rows of the plan that draw a token
    by_host: dict[int, RowResult]  # by row of the plan


class GpuRunner:
    """See `compute.worker.Steps`. `pool` is [num_blocks, L, 2, K, block_size, D]: the KV memory itself, on the GPU."""

    def __init__(self, model: Decoder, pool: Tensor, limits: Limits) -> None:
        self.model, self.pool = model, pool
        width = aligned(limits.blocks_for(limits.max_model_len))
        sizes = Sizes(limits.max_running, limits.max_num_batched_tokens, width, limits.block_size)
        for rope in {spec.rope for spec in model.specs}:
            rope.reach(limits.max_model_len)
        self.inbox = Inbox(sizes, pool, model.config.num_heads)
        self.graphs = Graphs(self.inbox, limits.max_running, limits.max_model_len)
        self.readout = Readout(model, Sampler(model.config.vocab_size))
        self.scratch = SampleScratch.allocate(limits.max_running, model.config.vocab_size, pool.device)
        self.stream = stream_of(pool.device)

    @property
    def depth(self) -> int:
        return 2

    @torch.inference_mode()
    def prepare(self) -> None:
        """Compiles and captures."""
        with self.stream.scope():
            self.graphs.capture(self.stream, self.decode)
            self.compile_mixed()
            self.copy([CopyOrder(0, 0, 0)])  # no slots: it compiles, and copies nothing
            self.stream.mark()()
            self.inbox.reset()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        with self.stream.scope():
            self.copy(plan.copies)
            if not plan.rows:
                return partial(StepResult, ())
            return partial(self.land, self.start(plan.rows))

    def land(self, step: Launched) -> StepResult:
        """Waits for a step. A row that cannot go on has `error` set and no token."""
        step.wait()
        answers = self.inbox.ring.answers[step.half][step.order].tolist()
        rows = zip(answers, step.draws, strict=True)
        return StepResult([step.by_host.get(i) or result(*row) for i, row in enumerate(rows)])

    # ------------------------------------------------------------------------------------------- a step

    def start(self, rows: Sequence[StepRow]) -> Launched:
        """Writes the step into the ring and puts its kernels on the stream."""
        order, ordered = singles_first(rows)
        singles = sum(len(row.token_ids) == 1 for row in ordered)
        longest = max(row.start + len(row.token_ids) for row in ordered)
        if singles == len(ordered):
            padded, graph = self.graphs.find(singles, longest)
            half = self.inbox.ring.write(ordered, Frame(padded, padded))
            graph.replay()
            hidden = graph.output
        else:
            tokens = sum(len(row.token_ids) for row in ordered)
            frame = Frame(len(ordered), tokens)
            half = self.inbox.ring.write(ordered, frame)
            splits = self.inbox.splits(singles, longest) if singles else 1
            most = max(len(row.token_ids) for row in ordered)
            hidden = self.mixed(frame, singles, splits, most)
        wait = self.stream.mark()
        by_host = self.by_host(rows, order, ordered, hidden)
        return Launched(wait, half, order, [row.sample for row in rows], by_host)

    def decode(self, frame: Frame, splits: int) -> Tensor:
        """A step whose rows all have one token: what a graph holds."""
        arrays = self.inbox.receive(frame)
        step = self.inbox.step(arrays, frame, frame.rows, splits, 0)
        return self.compute(arrays, step, frame.rows, every=True)

    def compile_mixed(self) -> None:
        """Every kernel of steps with chunks, for the sizes that they are compiled for: one chunk, many, short, long."""
        frame = Frame(3, 6)
        self.inbox.ring.blank(frame)
        for singles in (0, 1, 2):
            for most in (2, self.inbox.sizes.tokens):
                self.mixed(frame, singles, self.inbox.splits(1, self.graphs.lengths[-1]), most)

    def mixed(self, frame: Frame, singles: int, splits: int, most: int) -> Tensor:
        """A step with chunks of up to `most` tokens behind `singles` rows of one."""
        arrays = self.inbox.receive(frame)
        step = self.inbox.step(arrays, frame, singles, splits, most)
        return self.compute(arrays, step, frame.rows, every=False)

    def compute(self, arrays: Arrays, step: Step, rows: int, *, every: bool) -> Tensor:
        """The hidden states of all tokens; every wanted row's draw is on its way to the host. `every`: each token
        is the last of its row."""
        hidden = self.model.forward(arrays.ids, step)
        lasts = hidden if every else hidden.index_select(0, arrays.lasts)
        draws = Draws(**{name: getattr(arrays, name) for name in DRAWS})
        sample(self.model.raw_logits(lasts), draws, self.inbox.drawn[:rows], self.scratch)
        self.inbox.publish(rows)
        return hidden

    def copy(self, copies: Sequence[CopyOrder]) -> None:
        if copies:
            orders = np.array([(one.source, one.destination, one.slots) for one in copies], np.int32)
            copy_blocks(self.pool, torch.from_numpy(orders).to(self.pool.device))

    # ------------------------------------------------------------------------------------------ by the host

    def by_host(
        self, rows: Sequence[StepRow], order: Sequence[int], ordered: Sequence[StepRow], hidden: Tensor
    ) -> dict[int, RowResult]:
        """Results of the rows that the device cannot draw. Waits for the step if there are any."""
        chosen = [i for i, row in enumerate(rows) if drawn_by_host(row)]
        if not chosen:
            return {}
        counts = np.array([len(row.token_ids) for row in ordered])
        starts = (np.cumsum(counts) - counts)[np.asarray(order)[chosen]].tolist()
        results = self.readout.results([rows[i] for i in chosen], starts, hidden)
        return dict(zip(chosen, results, strict=True))


def drawn_by_host(row: StepRow) -> bool:
    drawn = bool(row.logprobs or row.forks or row.candidates) or touched(row)
    return bool(row.prompt_logprobs) or (row.sample and drawn)


def result(token: int, drawn: bool) -> RowResult:
    if not drawn:
        return RowResult()
    return RowResult(token_id=token) if token >= 0 else RowResult(error=FAULTS[token])


def singles_first(rows: Sequence[StepRow]) -> tuple[Sequence[int], Sequence[StepRow]]:
    """Each row's place in the ring, and the rows in that order: those of one token first, else as they came."""
    by_place = sorted(range(len(rows)), key=lambda i: len(rows[i].token_ids) > 1)
    order = np.empty(len(rows), np.int64)
    order[by_place] = np.arange(len(rows))
    return order.tolist(), [rows[i] for i in by_place]
