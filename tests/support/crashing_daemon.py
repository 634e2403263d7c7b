"""`python -m tests.support.crashing_daemon FILE --name=value …`: a daemon that fails as often as FILE says, then runs.

Each failure is an exception between its first beat and its first look at the metadata; FILE's number is one less then.
"""

import sys
from pathlib import Path

from kvmanager import daemon, standby

run = daemon.Daemon.run


def fail_first(path: Path) -> None:
    """`Daemon.run` raises while the file says so."""

    def failing(self: daemon.Daemon) -> None:
        left = int(path.read_text())
        if left:
            path.write_text(str(left - 1))
            raise AssertionError("failpoint: before the metadata is read")
        run(self)

    daemon.Daemon.run = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    fail_first(Path(sys.argv[1]))
    sys.exit(standby.main(sys.argv[2:]))
