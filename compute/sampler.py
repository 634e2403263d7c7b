"""Draws the next token of each row of a step. Order, as users of inference servers know it:

    penalties -> bias -> bans -> temperature -> top-k -> top-p -> min-p -> one draw        (temperature 0: the best)

A draw is a pure function of (logits row, the row's parameters and history, seed, position): one Philox number for
(seed, position), looked up in the cumulative weights of the kept tokens in the order of their ids, in float64. No state
is kept between steps, so a worker that adopts a sequence draws what the first one would have drawn.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from compute.filters import least_kept
from compute.logprobs import logprobs
from compute.penalties import adjust, touched
from compute.philox import uniform
from compute.plan import Logprob, StepRow

# A temperature above it draws evenly already; an infinite one would make NaN of banned tokens.
HOTTEST: Final = 1e30
NOT_FINITE: Final = "the model's logits are not finite"


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token of one row. With `error` the row has no token (token_id -1) and its sequence cannot go on."""

    token_id: int
    logprob: Logprob | None
    error: str | None


class Sampler:
    """Stateless but for the size of the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def sample(self, logits: Tensor, rows: Sequence[StepRow]) -> list[Drawn]:
        """One Drawn per row. `logits` is float [n, vocab_size], its row i belongs to rows[i]; it is not changed.

        A row whose logits hold NaN or +inf, or leave nothing to draw, has an error; the others are not affected.
        """
        assert logits.shape == (len(rows), self.vocab_size), f"logits {tuple(logits.shape)}, {len(rows)} rows"
        drawn: dict[int, tuple[int, str | None]] = {}
        for (adjusted, greedy), members in _by_need(rows).items():
            part = logits if len(members) == len(rows) else logits[members]
            some = [rows[i] for i in members]
            scores = adjust(part, some) if adjusted else part
            best = scores.max(dim=1)  # NaN wins; the first of equals
            tokens = best.indices if greedy else _draw(scores, best.values, some)
            drawn.update(zip(members, _judge(tokens, best.values), strict=True))
        return _records(logits, rows, [drawn[i] for i in range(len(rows))])


def _by_need(rows: Sequence[StepRow]) -> dict[tuple[bool, bool], list[int]]:
    """Row numbers by (has logits to adjust, takes the best token), so that a plain row pays for no other's wishes."""
    groups: defaultdict[tuple[bool, bool], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        greedy = row.sampling.temperature == 0.0 or row.sampling.top_k == 1
        groups[touched(row), greedy].append(i)
    return groups


def _draw(scores: Tensor, best: Tensor, rows: Sequence[StepRow]) -> Tensor:
    """Token ids int64 [n], each drawn by its row's own number. A row without a finite best gives any id."""
    params = [row.sampling for row in rows]
    heat = torch.tensor([param.temperature for param in params], dtype=torch.float64, device=scores.device)
    weights = scores.to(torch.float64, copy=True)
    weights.sub_(best[:, None]).div_(heat.clamp(max=HOTTEST)[:, None]).exp_()
    weights.masked_fill_(weights < least_kept(weights, params)[:, None], 0.0)
    running = weights.cumsum_(dim=1)  # in place: fresh pages cost more than the additions
    total = running[:, -1]
    positions = [row.start + len(row.token_ids) for row in rows]
    number = torch.from_numpy(uniform([param.seed for param in params], positions)).to(scores.device)
    # The first token whose running weight is above the target: its own weight is above 0.
    found = torch.searchsorted(running, (number * total)[:, None], right=True)[:, 0]
    return found.clamp(max=scores.shape[1] - 1)


def _judge(tokens: Tensor, best: Tensor) -> list[tuple[int, str | None]]:
    """(token id, None), or (-1, why not) by the best score of the row."""
    return [
        (-1, fault) if (fault := _fault(value)) else (token, None)
        for token, value in zip(tokens.tolist(), best.tolist(), strict=True)
    ]


def _fault(best: float) -> str | None:
    if best == -torch.inf:
        return "no token can be drawn: every one is banned or has probability 0"
    return None if best < torch.inf else NOT_FINITE


def _records(logits: Tensor, rows: Sequence[StepRow], drawn: Sequence[tuple[int, str | None]]) -> list[Drawn]:
    """The draws with the log-probabilities that were asked for."""
    asked = [i for i, row in enumerate(rows) if row.logprobs and drawn[i][1] is None]
    found: dict[int, Logprob] = {}
    if asked:
        part = logits if len(asked) == len(rows) else logits[asked]
        records = logprobs(part, [drawn[i][0] for i in asked], [rows[i].logprobs for i in asked])
        found = dict(zip(asked, records, strict=True))
    return [Drawn(token, found.get(i), error) for i, (token, error) in enumerate(drawn)]
