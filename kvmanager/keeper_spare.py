"""The spare: one more daemon process that has imported everything and waits for its turn. Standard library only.

    started --(the daemon died)--> released: it is the daemon, without an interpreter's start
       |
       +----(it died)----> replaced, later each time

It holds nothing of the service and is connected to nothing. When its keeper is gone it reads the end of its input, and
exits.
"""

import selectors
import time
from collections.abc import Sequence
from typing import Final

from kvmanager.keeper_child import BACKOFF_S, Child
from kvmanager.keeper_log import Log

LASTING_S: Final = 10.0  # a spare that lived this long starts the back-off again


class Spare:
    """At most one process."""

    def __init__(self, argv: Sequence[str], selector: selectors.BaseSelector, log: Log) -> None:
        self._argv, self._selector, self._log = argv, selector, log
        self._child: Child | None = None
        self._pause, self._not_before = BACKOFF_S[0], 0.0
        self._ended = False

    @property
    def there(self) -> bool:
        return self._child is not None

    def want(self, now: float) -> None:
        """Starts one if there is none and the back-off is over."""
        if self._child is None and not self._ended and now >= self._not_before:
            self._child = Child(self._argv, now)
            self._selector.register(self._child.pidfd, selectors.EVENT_READ, self._reap)
            self._log.info("spare daemon started", pid=self._child.pid)

    def take(self) -> Child | None:
        """The spare, to be released and watched by the caller."""
        child = self._forget()
        if child is not None:
            self._pause = BACKOFF_S[0]
        return child

    def _forget(self) -> Child | None:
        child, self._child = self._child, None
        if child is not None:
            self._selector.unregister(child.pidfd)
        return child

    def end(self) -> None:
        """For good; `there` says when it is gone. Killed: it has nothing to finish."""
        self._ended = True
        if self._child is not None:
            self._child.process.kill()

    def _reap(self) -> None:
        child, now = self._forget(), time.monotonic()
        assert child is not None
        code, lasted = child.reap(), now - child.started >= LASTING_S
        if not self._ended:
            self._pause = BACKOFF_S[0] if lasted else min(self._pause * 2, BACKOFF_S[1])
            self._not_before = now + self._pause
            self._log.warning("spare daemon died", pid=child.pid, code=code, after_s=round(self._pause, 2))
