"""What a row's history and wishes do to its logits before anything is drawn: penalties, then bias, then bans.

    repetition             prompt and output   logit > 0: / penalty, else: * penalty
    frequency, presence    output              logit - frequency * count - presence
    bias                                       logit + bias
    bans                                       -inf

Everything is derived from the row (its history included): an adopter computes the same. Only the touched logits of
the step are read and written, in one gather and one scatter a stage for all rows.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compute.plan import StepRow

Ids = NDArray[np.int64]
NONE: Final = (np.empty(0, np.int64), np.empty(0, np.int64))


def touched(row: StepRow) -> bool:
    """Whether `adjust` would change the row's logits."""
    params = row.sampling
    repeats = params.repetition_penalty != 1.0
    counts = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    return repeats or counts or bool(params.logit_bias) or bool(row.banned)


def adjust(logits: Tensor, rows: Sequence[StepRow]) -> Tensor:
    """float32 [n, vocab], a copy of `logits` [n, vocab] adjusted for each row. A NaN or +inf is never hidden."""
    scores = logits.to(torch.float32, copy=True)
    broken = ~(scores.amax(dim=1) < torch.inf)
    _repetition(scores, rows)
    _counts(scores, rows)
    _bias(scores, rows)
    _bans(scores, rows)
    scores[broken] = torch.nan
    return scores


def _repetition(scores: Tensor, rows: Sequence[StepRow]) -> None:
    penalties = [row.sampling.repetition_penalty for row in rows]
    found = [_count(row, 0) if row.sampling.repetition_penalty != 1.0 else NONE for row in rows]
    where, (penalty,) = _flat(scores, [ids for ids, _ in found], penalties)
    values = scores[where]
    scores[where] = torch.where(values > 0, values / penalty, values * penalty)


def _counts(scores: Tensor, rows: Sequence[StepRow]) -> None:
    """Frequency and presence, as OpenAI defines them."""
    frequency = [row.sampling.frequency_penalty for row in rows]
    presence = [row.sampling.presence_penalty for row in rows]
    wanted = [bool(each or once) for each, once in zip(frequency, presence, strict=True)]
    found = [_count(row, row.prompt_len) if want else NONE for row, want in zip(rows, wanted, strict=True)]
    where, (each, once) = _flat(scores, [ids for ids, _ in found], frequency, presence)
    counts = torch.from_numpy(np.concatenate([count for _, count in found])).to(scores)
    scores[where] -= each * counts + once


def _bias(scores: Tensor, rows: Sequence[StepRow]) -> None:
    biases = [row.sampling.logit_bias for row in rows]
    where, _ = _flat(scores, [tuple(bias) for bias in biases])
    scores[where] += scores.new_tensor([value for bias in biases for value in bias.values()])


def _bans(scores: Tensor, rows: Sequence[StepRow]) -> None:
    """An id beyond the vocabulary (a model's end-of-sequence id may be) cannot be drawn anyway."""
    banned = [[token for token in row.banned if token < scores.shape[1]] for row in rows]
    where, _ = _flat(scores, banned)
    scores[where] = -torch.inf


def _count(row: StepRow, first: int) -> tuple[Ids, Ids]:
    """The distinct token ids at positions first .. start + len(token_ids), and how often each stands there."""
    end = row.start + len(row.token_ids)
    ids = np.asarray(row.history[first:end], np.int64)
    return np.unique(
        ids, return_counts=True
    )  # counts even for repetition: numpy then sorts, ten times its hashing


def _flat(
    scores: Tensor, ids: Sequence[Iterable[int] | Ids], *values: Sequence[float]
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Index (row, id) of every id of every row, and each of `values` (one per row) repeated for the row's ids."""
    columns = [np.asarray(row, np.int64) for row in ids]
    repeats = [len(column) for column in columns]
    rows = np.repeat(np.arange(len(columns)), repeats)
    device = scores.device
    where = torch.from_numpy(rows).to(device), torch.from_numpy(np.concatenate(columns)).to(device)
    return where, [torch.from_numpy(np.repeat(value, repeats)).to(scores) for value in values]
