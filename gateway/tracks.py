"""One sequence's tokens between the worker and the client: each position once, in order, bounded. Pure.

    prompt ... | delivered ......... | buffered ......... | recorded, not here ... |
               ^ prompt_len          ^ next               ^ end                    ^ known

Tokens that arrive at `end` are buffered while there is room. Whatever else raises `known` (a gap, or a client so slow
that the buffer is full) is left in the daemon's record and read from there, from `end` on, once the buffer is empty.
Another worker that adopts the sequence says its last tokens again, under a newer epoch: positions decide what is new.
"""

import struct
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from kvmanager.messages import FinishReason

BUFFER_TOKENS: Final = 256

L = TypeVar("L")  # a log-probability, opaque here


@dataclass(slots=True, kw_only=True)
class Entry(Generic[L]):
    """What one recorded step gave for one sequence. `logprobs` is empty or has one per id."""

    sequence: bytes
    epoch: int
    first_position: int
    token_ids: Sequence[int] = ()
    logprobs: Sequence[L] = ()
    prompt_logprobs: Sequence[L] = ()
    finish: FinishReason = FinishReason.NONE
    stop_token_id: int | None = None
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    stalled_seconds: float = 0.0


@dataclass(slots=True)
class Batch(Generic[L]):
    """Consecutive tokens; `logprobs` is empty or has one per id."""

    token_ids: list[int]
    logprobs: list[L]


class Track(Generic[L]):
    """Accepts entries and record reads, gives batches. `limit` bounds the buffer, in tokens."""

    def __init__(self, prompt_len: int, limit: int = BUFFER_TOKENS) -> None:
        self._buffer: deque[tuple[int, L | None]] = deque()
        self._limit = limit
        self._delivered = array("I")
        self._usage_epoch = 0
        self.epoch = 0
        self.prompt_len = prompt_len
        self.next = self.end = self.known = prompt_len
        self.final: int | None = None  # one past the last position, once the finish is known
        self.finish = FinishReason.NONE
        self.stop_token_id: int | None = None
        self.cached_tokens = 0
        self.queue_seconds = 0.0
        self.stalled_seconds = 0.0
        self.prompt_logprobs: list[L] = []

    def accept(self, entry: Entry[L]) -> bool:
        """Takes what is new of `entry`; False if it is of an older epoch or of a finished sequence."""
        if entry.epoch < self.epoch or self.final is not None:
            return False
        if entry.epoch > self.epoch:
            self.prompt_logprobs.clear()  # they come all together, with the first token
        self.epoch = entry.epoch
        if self.known == self.prompt_len or not self._usage_epoch:
            self._usage_epoch = entry.epoch  # who brought the first token; an adopter's own are another story
        if entry.epoch == self._usage_epoch:
            self.cached_tokens = entry.cached_tokens
            self.queue_seconds = entry.queue_seconds
        self.stalled_seconds = entry.stalled_seconds
        self.prompt_logprobs.extend(entry.prompt_logprobs)
        self._append(entry.first_position, entry.token_ids, entry.logprobs)
        if entry.finish:
            self._ends(entry.finish, entry.stop_token_id)
        return True

    def _append(self, first: int, ids: Sequence[int], logprobs: Sequence[L]) -> None:
        old = self.end - first  # how many of `ids` are here already; negative: a gap
        gap = old < 0 or self.known > self.end
        self.known = max(self.known, first + len(ids))
        if gap or old >= len(ids) or len(self._buffer) + len(ids) - old > self._limit:
            return
        self._buffer.extend(zip(ids[old:], logprobs[old:] or (None,) * (len(ids) - old), strict=True))
        self.end = first + len(ids)

    def _ends(self, finish: FinishReason, stop_token_id: int | None) -> None:
        self.finish, self.stop_token_id, self.final = finish, stop_token_id, self.known

    @property
    def missing(self) -> bool:
        """The buffer is empty and the record has more: read it from `end`, then `feed`."""
        return not self._buffer and self.known > self.end

    def feed(self, first: int, ids: Sequence[int]) -> None:
        """Tokens read from the record at `first`, as many as the buffer holds; the rest is read again later."""
        new = ids[max(0, self.end - first) :] if first <= self.end else ()
        new = new[: self._limit - len(self._buffer)]
        self._buffer.extend((token_id, None) for token_id in new)
        self.end += len(new)
        self.known = max(self.known, self.end)

    def learn(self, recorded: int, finish: FinishReason, stop_token_id: int | None) -> None:
        """What the record says of a sequence: its length and its end."""
        self.known = max(self.known, recorded)
        if finish and self.final is None:
            self._ends(finish, stop_token_id)

    def skip(self, ids: Sequence[int]) -> None:
        """The first output tokens, delivered before this track began."""
        assert self.end == self.prompt_len
        self._delivered.extend(ids)
        self.next = self.end = self.prompt_len + len(ids)
        self.known = max(self.known, self.end)

    def begin_again(self, epoch: int, recorded: int) -> None:
        """The record was lost and is opened anew from what is here: it may be shorter and its epochs begin again."""
        self.epoch, self.known = epoch, max(self.end, recorded)

    @property
    def output_ids(self) -> bytes:
        """Packed: the output tokens that are here, delivered or buffered."""
        ids = [*self._delivered, *(token_id for token_id, _ in self._buffer)]
        return struct.pack(f"<{len(ids)}I", *ids)

    @property
    def ready(self) -> int:
        """Buffered tokens."""
        return len(self._buffer)

    @property
    def ended(self) -> bool:
        """The finish is known."""
        return self.final is not None

    @property
    def complete(self) -> bool:
        """The finish is known and everything before it is buffered or delivered."""
        return self.final == self.end

    @property
    def done(self) -> bool:
        return self.final == self.next

    def take(self, most: int) -> Batch[L]:
        """Up to `most` buffered tokens, all with a log-probability or all without."""
        ids: list[int] = []
        logprobs: list[L] = []
        with_logprobs = bool(self._buffer) and self._buffer[0][1] is not None
        while self._buffer and len(ids) < most and (self._buffer[0][1] is not None) == with_logprobs:
            token_id, logprob = self._buffer.popleft()
            ids.append(token_id)
            if logprob is not None:
                logprobs.append(logprob)
        self.next += len(ids)
        self._delivered.extend(ids)
        return Batch(ids, logprobs)
