"""The Generate calls that are under way: how many there may be, and which of them owns a request id.

A request id belongs to one call of its tenant. A call that resumes takes it from the one that has it, if there is
one: that call is shown out, and what it ran runs on for the newer.
"""

from dataclasses import dataclass

import grpc

from gateway.doors import Visit
from gateway.errors import Refusal, exhausted
from gateway.generation import Generation

Key = tuple[str, str]  # tenant, request id


@dataclass(eq=False, slots=True)
class Call:
    """`n` indexes, before its generation is there to say how many of them wait."""

    key: Key
    visit: Visit
    n: int
    generation: Generation | None = None

    @property
    def waiting(self) -> int:
        """Indexes without a first token."""
        return self.generation.waiting if self.generation else self.n


class Calls:
    """Of one service."""

    def __init__(self, max_concurrent: int, max_queue: int) -> None:
        self._max_concurrent = max_concurrent
        self._max_queue = max_queue
        self._all: set[Call] = set()
        self._owners: dict[Key, Call] = {}

    def enter(self, call: Call) -> None:
        """A new request; Refusal if its id is taken or there are too many."""
        if call.key in self._owners:
            raise Refusal(
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_IN_FLIGHT",
                "request_id: a request of this id is in flight",
                {"field": "request_id"},
            )
        self.enter_to_resume(call)
        self._owners[call.key] = call

    def enter_to_resume(self, call: Call) -> None:
        """A call that has not taken its id yet; Refusal if there are too many. The one it relieves does not count."""
        others = self._all - {self._owners.get(call.key)}
        if len(others) >= self._max_concurrent or sum(o.waiting for o in others) + call.n > self._max_queue:
            raise exhausted("QUEUE_FULL", "too many requests are waiting; try again later")
        self._all.add(call)

    def take_over(self, call: Call) -> None:
        """The newest that resumes has the request; whoever had it goes, and lets its sequences run."""
        former = self._owners.get(call.key)
        self._owners[call.key] = call
        if former is not None:
            if former.generation is not None:
                former.generation.leave()
            former.visit.show_out(resumed())

    def leave(self, call: Call) -> None:
        self._all.discard(call)
        if self._owners.get(call.key) is call:
            del self._owners[call.key]


def resumed() -> Refusal:
    return Refusal(
        grpc.StatusCode.ABORTED,
        "RESUMED_ELSEWHERE",
        "a newer call resumed the request; this stream ends here",
    )
