"""Shown after recorded: holds what each message to the daemon lets the gateways see, until it is acknowledged.

    step N:   Commit(N) ──> daemon          Tokens(N) wait here
              Acked(N)  <── daemon          Tokens(N) leave, without the entries that were refused

Pure. The daemon answers in the order of the numbers; an answer to n stands for everything before n too.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from compute.scheduler import Rejection, TokenEvent
from kvmanager.errors import KvError
from kvmanager.messages import Acked, Commit, Numbered, OpenOrAdopt, Refusal, SequenceId


@dataclass(frozen=True, slots=True)
class Held:
    """One message on its way. `step`, `events` and `rejections`: what its acknowledgement lets out."""

    number: int
    message: Numbered
    step: int = 0
    events: Sequence[TokenEvent] = ()
    rejections: Sequence[Rejection] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What may leave now."""

    held: Held
    events: Sequence[TokenEvent]
    rejections: Sequence[Rejection]


class Ledger:
    def __init__(self) -> None:
        self._held: deque[Held] = deque()
        self.number = 0  # of the last message
        self._void: set[SequenceId] = (
            set()
        )  # forks that were refused: nothing said of them counts until they open

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """What is not acknowledged, oldest first."""
        return iter(self._held)

    def sent(self, held: Held) -> None:
        self._held.append(held)
        self.number = held.number
        if isinstance(held.message, OpenOrAdopt):
            self._void.discard(held.message.sequence)

    def follow(self, events: Sequence[TokenEvent]) -> bool:
        """Lets events out with the last message on its way; False if there is none."""
        if self._held:
            last = self._held[-1]
            self._held[-1] = replace(last, events=(*last.events, *events))
        return bool(self._held)

    def answered(self, number: int, refusals: Sequence[Refusal] = ()) -> list[Shown]:
        """Everything up to `number` is recorded, but for the refused entries of `number` itself."""
        shown = []
        while self._held and self._held[0].number <= number:
            held = self._held.popleft()
            shown.append(self._judge(held, refusals if held.number == number else ()))
        return shown

    def _judge(self, held: Held, refusals: Sequence[Refusal]) -> Shown:
        """Without refused entries. Where a sequence's end was refused, its end is the refusal; a refused fork begins
        again, unless it was ended without a token: that stands."""
        refused = {refusal.sequence: refusal for refusal in refusals}
        if refused and isinstance(held.message, Commit):
            forks = {entry.sequence for entry in held.message.entries if entry.fork is not None}
            self._void |= forks & refused.keys()
        events, rejections = [], list(held.rejections)
        for event in held.events:
            if event.sequence in self._void:
                if event.finish and not event.token_ids:
                    self._void.discard(event.sequence)
                    events.append(event)
            elif event.sequence not in refused:
                events.append(event)
            elif event.finish:
                rejections.append(refused_end(event, refused[event.sequence]))
        return Shown(held, events, rejections)


def refused_end(event: TokenEvent, refusal: Refusal) -> Rejection:
    return Rejection(
        sequence=event.sequence,
        client=event.client,
        code=refusal.code,
        message=f"the daemon refused the last commit: {refusal.message}",
    )


def acked(reply: object) -> Acked:
    """An acknowledgement, whatever answered the message."""
    if isinstance(reply, Acked):
        return reply
    raise KvError(f"the daemon answered with {type(reply).__name__}, expected Acked")
