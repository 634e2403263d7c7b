"""What is read out of a step's hidden states: each row's token, and the log-probabilities that it asked for.

Draws on the host, row by row as its wishes say: any filter, penalty, bias or ban. Blocks until the device is done.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Final

import torch
from torch import Tensor

from compute.batch import ROW_GRID
from compute.logprobs import most_likely, prompt_logprobs
from compute.model.decoder import Decoder
from compute.plan import Logprob, RowResult, StepRow
from compute.sampler import NOT_FINITE, Drawn, Sampler
from kvmanager.messages import SequenceId

MAX_CARRIED: Final = 1024
SCORED: Final = 256  # prompt tokens at a time: their logits are a quarter of a gigabyte for 128k tokens


class Readout:
    """One model's. Keeps of a prompt only the last hidden state of its former chunk."""

    def __init__(self, model: Decoder, sampler: Sampler) -> None:
        self.model = model
        self.sampler = sampler
        # It predicts the first token of the next chunk.
        self.carried: OrderedDict[SequenceId, tuple[int, Tensor]] = OrderedDict()

    def results(self, rows: Sequence[StepRow], starts: Sequence[int], hidden: Tensor) -> list[RowResult]:
        """Of rows whose tokens begin at `starts` of hidden [T, E]. A row that cannot go on has `error` set."""
        drawn, grown = self.draw(rows, starts, hidden), self.candidates(rows, starts, hidden)
        return [
            grown.get(i) or self.result(row, drawn.get(i, ()), start, hidden)
            for i, (row, start) in enumerate(zip(rows, starts, strict=True))
        ]

    def candidates(
        self, rows: Sequence[StepRow], starts: Sequence[int], hidden: Tensor
    ) -> dict[int, RowResult]:
        """Of each beam's row, by index of the row: the most likely tokens, and what was asked about the prompt."""
        wanted = [i for i, row in enumerate(rows) if row.candidates]
        if not wanted:
            return {}
        logits = self.logits(hidden, [starts[i] + len(rows[i].token_ids) - 1 for i in wanted])
        found = most_likely(logits, max(rows[i].candidates for i in wanted))
        return {i: self.beam(rows[i], best, starts[i], hidden) for i, best in zip(wanted, found, strict=True)}

    def beam(self, row: StepRow, best: Sequence[tuple[int, float]], start: int, hidden: Tensor) -> RowResult:
        if not all(math.isfinite(logprob) or logprob == -math.inf for _, logprob in best):
            return RowResult(error=NOT_FINITE)
        scores = self.score_prompt(row, start, hidden) if row.prompt_logprobs else ()
        return RowResult(candidates=best[: row.candidates], prompt_logprobs=scores)

    def draw(
        self, rows: Sequence[StepRow], starts: Sequence[int], hidden: Tensor
    ) -> dict[int, Sequence[Drawn]]:
        """What each row that samples drew, by index of the row: its own token, then those of its forks."""
        wanted = [i for i, row in enumerate(rows) if row.sample and not row.candidates]
        if not wanted:
            return {}
        lasts = [starts[i] + len(rows[i].token_ids) - 1 for i in wanted]
        draws = [each_draw(rows[i]) for i in wanted]
        logits, counts = self.logits(hidden, lasts), [len(one) for one in draws]
        if max(counts) > 1:
            logits = logits.repeat_interleave(torch.tensor(counts, device=logits.device), dim=0)
        drawn = iter(self.sampler.sample(logits, list(chain.from_iterable(draws))))
        return {i: list(islice(drawn, count)) for i, count in zip(wanted, counts, strict=True)}

    def logits(self, hidden: Tensor, places: Sequence[int]) -> Tensor:
        """[n, V] for n rows of hidden; the product runs on a multiple of ROW_GRID rows (see `batch`)."""
        padding = [places[0]] * (-len(places) % ROW_GRID)
        chosen = hidden[torch.tensor([*places, *padding], device=hidden.device)]
        return self.model.logits(chosen)[: len(places)]

    def result(self, row: StepRow, drawn: Sequence[Drawn], start: int, hidden: Tensor) -> RowResult:
        scores = self.score_prompt(row, start, hidden) if row.prompt_logprobs else ()
        if not drawn:
            return RowResult(prompt_logprobs=scores)
        own, *forks = [result_of(one) for one in drawn]
        return replace(own, prompt_logprobs=scores, forks=forks)

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
        scores: list[Logprob] = []
        for at in range(0, len(states), SCORED):
            part = states[at : at + SCORED]
            logits = self.logits(part, range(len(part)))
            targets = row.history[first + at : min(first + at + SCORED, end)]
            scores += prompt_logprobs(logits, targets, row.prompt_logprobs)
        return scores

    def carry(self, sequence: SequenceId, position: int, state: Tensor) -> None:
        self.carried[sequence] = (position, state.clone().unsqueeze(0))
        if len(self.carried) > MAX_CARRIED:  # left by sequences that ended within their prompt
            self.carried.popitem(last=False)


def each_draw(row: StepRow) -> list[StepRow]:
    """The row as each of its draws sees it."""
    forks = [
        replace(row, sampling=one.sampling, banned=one.banned, logprobs=one.logprobs) for one in row.forks
    ]
    return [row, *forks]


def result_of(drawn: Drawn) -> RowResult:
    if drawn.error is not None:
        return RowResult(error=drawn.error)
    return RowResult(token_id=drawn.token_id, logprob=drawn.logprob)
