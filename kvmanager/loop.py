"""One poller for everything the daemon waits on: ZeroMQ sockets and plain descriptors, each with its callback."""

import math
from collections.abc import Callable
from typing import Any

import zmq

Callback = Callable[[], None]


class Loop:
    """Single-threaded. A callback may watch and forget anything, itself included."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._callbacks: dict[Any, Callback] = {}

    def watch(self, source: Any, callback: Callback) -> None:
        """Calls `callback` whenever `source` (a ZeroMQ socket or a descriptor's number) is readable."""
        self._poller.register(source, zmq.POLLIN)
        self._callbacks[source] = callback

    def forget(self, source: Any) -> None:
        """Before the source is closed."""
        if self._callbacks.pop(source, None) is not None:
            self._poller.unregister(source)

    def wait(self, timeout_s: float) -> list[Callback]:
        """Callbacks of what is readable within the time, in no order."""
        ready = self._poller.poll(math.ceil(max(timeout_s, 0.0) * 1000))
        return [self._guarded(source) for source, _ in ready]

    def _guarded(self, source: Any) -> Callback:
        """Not called if another callback of the same round forgot the source."""
        callback = self._callbacks[source]

        def call() -> None:
            if self._callbacks.get(source) is callback:
                callback()

        return call
