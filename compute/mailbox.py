"""How the two threads of a worker talk: an inbox the step thread sleeps on, an outbox that wakes the I/O thread's poll.

Owns no policy. Both are unbounded by themselves; what fills them is bounded: requests by the scheduler's `max_waiting`,
outcomes by the number of unacknowledged messages (see `worker`).
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from compute.request import Request
from compute.scheduler import Outcome
from kvmanager.messages import Acked, FinishReason, Numbered, Reply, SequenceId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submitted:
    request: Request


@dataclass(frozen=True, slots=True)
class Canceled:
    sequence: SequenceId
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Applied:
    """The daemon's acknowledgement of one message of ours."""

    message: Numbered
    reply: Acked


@dataclass(frozen=True, slots=True)
class Unasked:
    """What the daemon said without being asked: it answers no message of ours."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Draining:
    """Admit nothing any more."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the step loop at the next boundary."""


ToStep = Submitted | Canceled | Applied | Unasked | Draining | Stop | Reply


@dataclass(frozen=True, slots=True)
class Orders:
    """To be sent before the step runs."""

    messages: Sequence[Numbered]


@dataclass(frozen=True, slots=True)
class Crashed:
    """The step thread is over."""

    error: BaseException


ToLink = Outcome | Orders | Crashed


class Inbox(Generic[T]):
    """Many may put, one thread takes."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._filled = threading.Condition()

    def put(self, item: T) -> None:
        with self._filled:
            self._items.append(item)
            self._filled.notify()

    def take(self, timeout_s: float | None = 0.0) -> list[T]:
        """Everything that is here; sleeps up to `timeout_s` (None: for ever) for the first item."""
        with self._filled:
            if not self._items and timeout_s != 0.0:
                self._filled.wait(timeout_s)
            items = list(self._items)
            self._items.clear()
            return items


class Outbox(Generic[T]):
    """One thread puts, one takes and polls `fileno`."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._event

    def put(self, item: T) -> None:
        self._items.append(item)
        self.wake()

    def wake(self) -> None:
        """Makes the poll return; safe in a signal handler."""
        os.eventfd_write(self._event, 1)

    def take(self) -> list[T]:
        """Everything that is here. The event is reset first, so that nothing put later is overlooked."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        os.close(self._event)
