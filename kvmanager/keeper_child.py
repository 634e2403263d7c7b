"""The keeper's child: the daemon's process from its start to its end, and until when each state of it may last.

    ready --(released)--> starting --(first beat)--> running --(SIGTERM passed on)--> stopping
      |                      |                          |                                |
    as long as it likes   START_BOUND_S    BEAT_BOUND_S since the last beat   STOP_BOUND_S since then

A child reads one byte from its standard input before it does anything: its release, and how often in a row daemons
before it crashed fast. A daemon closes its connection to the keeper before it exits, so a closed connection is no
state of its own: who has beaten is judged by the last beat. Standard library only. No loop, no sockets.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

BEAT_BOUND_S: Final = 5.0  # silence of a daemon that has beaten
START_BOUND_S: Final = 60.0  # a child's first beat
STOP_BOUND_S: Final = 5.0  # for a child to end after SIGTERM
STEADY_S: Final = 1.0  # between a steady daemon's first and last beat in service
BACKOFF_S: Final = (0.05, 5.0)  # doubles from the first to the second
NO_FAILURES: Final = (0, -signal.SIGKILL, -signal.SIGTERM)  # exit codes
MOST_TOLD: Final = 255  # what one byte can say


class Child:
    """One process. Times are time.monotonic()."""

    def __init__(self, argv: Sequence[str], now: float) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, bufsize=0)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.started = now  # or released
        self.beat: float | None = None  # its last one
        self.serving: float | None = None  # its first one in service
        self.told: float | None = None  # when SIGTERM was passed on to it
        self.killed = False

    def release(self, fast_crashes: int, now: float) -> None:
        """It is the daemon now. One that is gone already, or does not ask, is not told."""
        self.started = now
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(bytes([min(fast_crashes, MOST_TOLD)]))
        self.process.stdin.close()

    def heard(self, now: float, *, serving: bool) -> None:
        """It beat; `serving`: it has taken over what there was, and answers."""
        self.beat = now
        if serving and self.serving is None:
            self.serving = now

    @property
    def steady(self) -> bool:
        """Whether it has been in service long enough for its end to be no fault of what it found."""
        return self.beat is not None and self.serving is not None and self.beat - self.serving >= STEADY_S

    def failed(self, code: int) -> bool:
        """Whether its end may be the fault of what it found. Who never beat has looked at nothing; who was killed or
        told to end by others ended because of them."""
        return self.beat is not None and (self.killed or code not in NO_FAILURES)

    def terminate(self, now: float) -> None:
        self.told = now
        self.process.terminate()

    def forgive(self, lost: float) -> None:
        """This much time does not count."""
        self.started += lost
        self.beat = self.beat and self.beat + lost
        self.serving = self.serving and self.serving + lost
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
        if self.process.stdin is not None:
            self.process.stdin.close()
        return self.process.wait()


class Ends:
    """How the daemons ended, and so how long to wait before the next one starts."""

    def __init__(self) -> None:
        self.fast_crashes = 0  # in a row: of daemons that had begun, and failed before they were steady
        self._pause = BACKOFF_S[0]

    def pause_after(self, child: Child, code: int) -> float:
        """Counts one end; seconds."""
        if child.steady:
            self.fast_crashes, self._pause = 0, BACKOFF_S[0]
            return self._pause
        self.fast_crashes += child.failed(code)
        self._pause = min(self._pause * 2, BACKOFF_S[1])
        return self._pause
