"""The keeper's child: the daemon's process from its start to its end, and until when each state of it may last.

    started --(first beat)--> running --(SIGTERM passed on)--> stopping
       |                         |                                |
    START_BOUND_S         BEAT_BOUND_S since the last beat   STOP_BOUND_S since then

A daemon closes its connection to the keeper before it exits, so a closed connection is no state of its own: who has
beaten is judged by the last beat. Standard library only. No loop, no sockets.
"""

import os
import subprocess
from collections.abc import Sequence
from typing import Final

BEAT_BOUND_S: Final = 5.0  # silence of a daemon that has beaten
START_BOUND_S: Final = 60.0  # a child's first beat
STOP_BOUND_S: Final = 5.0  # for a child to end after SIGTERM


class Child:
    """One process. Times are time.monotonic()."""

    def __init__(self, argv: Sequence[str], now: float) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.started = now
        self.beat: float | None = None  # its last one
        self.told: float | None = None  # when SIGTERM was passed on to it
        self.killed = False

    def terminate(self, now: float) -> None:
        self.told = now
        self.process.terminate()

    def spare(self, lost: float) -> None:
        """This much time does not count."""
        self.started += lost
        self.beat = self.beat and self.beat + lost
        self.told = self.told and self.told + lost

    def due(self) -> float | None:
        """When its present state has lasted too long; None: it is killed, its end will be seen."""
        if self.killed:
            return None
        if self.told is not None:
            return self.told + STOP_BOUND_S
        return self.started + START_BOUND_S if self.beat is None else self.beat + BEAT_BOUND_S

    def fault(self) -> str:
        """What is wrong with it once `due` is over."""
        if self.told is not None:
            return "the daemon does not end"
        return "the daemon did not start" if self.beat is None else "the daemon is silent"

    def reap(self) -> int:
        """The exit code of a child that ended."""
        os.close(self.pidfd)
        return self.process.wait()
