"""The way in and out of the service: who is inside, and how they leave when the gateway shuts down.

Once the doors are closed a request is refused as UNAVAILABLE in our own words: gRPC's server, told to stop, would cut
it off with a bare CANCELLED. Whoever is inside may finish within the grace and is then shown out: UNAVAILABLE if the
client has heard nothing and may send the request again, ABORTED if it has and may resume it elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import grpc

from gateway.errors import Refusal, unavailable


@dataclass(eq=False, slots=True)
class Visit:
    """One call that is inside. `heard`: its client has got a message."""

    heard: bool = False
    time: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    refusal: Refusal | None = None  # why it is shown out

    def show_out(self, refusal: Refusal) -> None:
        """Ends the call with `refusal`, wherever it waits."""
        self.refusal = self.refusal or refusal
        if not self.time.expired():
            self.time.reschedule(0)


class Doors:
    """Of one service, in one event loop."""

    def __init__(self) -> None:
        self._closed = False
        self._inside: set[Visit] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def check(self) -> None:
        """Refusal UNAVAILABLE once the doors are closed."""
        if self._closed:
            raise unavailable("SHUTTING_DOWN", "the gateway is shutting down")

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[Visit]:
        """Refusal at the entrance when closed, or inside when the call is shown out."""
        self.check()
        visit = Visit()
        self._inside.add(visit)
        self._empty.clear()
        try:
            async with visit.time:
                yield visit
        except TimeoutError:
            if not visit.time.expired():
                raise  # somebody else's
            assert visit.refusal is not None
            raise visit.refusal from None
        finally:
            self._inside.discard(visit)
            if not self._inside:
                self._empty.set()

    async def close(self, grace: float) -> None:
        """Lets nobody in from now on; returns when everybody has left or, after `grace` seconds, is on the way out."""
        self._closed = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace)
        for visit in self._inside:
            visit.show_out(shut_down(visit))


def shut_down(visit: Visit) -> Refusal:
    if not visit.heard:
        return unavailable("SHUTTING_DOWN", "the gateway shut down before the first token")
    return Refusal(
        grpc.StatusCode.ABORTED,
        "SHUTTING_DOWN",
        "the gateway shut down after the first token; another one can resume the request",
    )
