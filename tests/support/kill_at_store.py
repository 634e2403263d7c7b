"""`python -m tests.support.kill_at_store FD:STORE …`: for each, a child whose storm on FD dies at that store.

The child gets a real SIGKILL just before the store is made. One line a death is printed.
"""

import mmap
import os
import signal
import sys

from tests.support.storm import Storm

SEED, CALLS = 5, 400


def run_until(fd: int, store: int) -> None:
    """The storm, in this process, up to its death."""
    made = 0

    def hook(_at: int, _data: bytes) -> None:
        nonlocal made
        made += 1
        if made == store:
            os.kill(os.getpid(), signal.SIGKILL)

    Storm(SEED, mmap.mmap(fd, 0), hook).run(CALLS)


def main() -> None:
    for word in sys.argv[1:]:
        fd, store = map(int, word.split(":"))
        pid = os.fork()
        if pid == 0:
            run_until(fd, store)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(word, "killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else status)


if __name__ == "__main__":
    main()
