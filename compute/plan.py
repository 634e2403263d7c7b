"""A step by value: what the scheduler tells the runner, and what comes back. Pure data (protocol rule 2).

    position  0 ........ start ........ start + len(token_ids)
              [ KV valid ][ this step computes KV ]
                                                 ^ the next token is sampled here, if `sample`

A decode row has one token id; a prefill chunk has more. `blocks` covers every position up to the end of the chunk.
Where two steps are on their way at once, a decode row's id may be UNKNOWN; its `history` ends before that token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from compute.request import SamplingParams
from kvmanager.messages import SequenceId

UNKNOWN: Final = -1  # the id of a token that the step before this one draws, and that nobody has read yet


@dataclass(frozen=True, slots=True)
class Draw:
    """How one more token is drawn from a row's logits: the first of a sequence that forks there."""

    sampling: SamplingParams
    banned: frozenset[int] = frozenset()
    logprobs: int = 0


@dataclass(slots=True, kw_only=True)
class StepRow:
    """One sequence's part of a step. Nobody changes one; it is not frozen because that triples its cost to make."""

    sequence: SequenceId
    epoch: int
    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]  # block ids
    sample: bool
    history: Sequence[int]  # prompt and output up to and including token_ids
    prompt_len: int
    sampling: SamplingParams
    banned: frozenset[int] = frozenset()  # ids that must not be drawn (min_tokens)
    logprobs: int = 0
    prompt_logprobs: int = 0
    forks: Sequence[Draw] = ()
    candidates: int = 0  # of a beam: give the so many most likely tokens, draw none


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """Copy the first `slots` token slots of one block to another, all layers, before the step."""

    source: int
    destination: int
    slots: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    number: int
    rows: Sequence[StepRow]
    copies: Sequence[CopyOrder] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Logprob:
    """Of one token, before temperature and filters. `top`: the k most likely, best first."""

    token_id: int
    logprob: float
    rank: int
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class RowResult:
    """What one row gave. `prompt_logprobs`: one per prompt token of the chunk but position 0. `forks`: one per Draw.

    `error`: this row alone failed, and why; its other fields mean nothing.
    """

    token_id: int | None = None
    logprob: Logprob | None = None
    prompt_logprobs: Sequence[Logprob] = ()
    error: str | None = None
    forks: "Sequence[RowResult]" = ()
    candidates: Sequence[tuple[int, float]] = ()  # (id, log-probability), best first


@dataclass(frozen=True, slots=True)
class StepResult:
    rows: Sequence[RowResult]  # in the plan's order
