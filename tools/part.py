"""`python -m tools.part MODULE ARG…`: becomes `python -m MODULE ARG…`, and ends with the process that started it.

The kernel sends SIGTERM when the supervisor is gone, however it went; that survives the exec. Done here and not between
fork and exec, because the supervisor may have threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    supervisor = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != supervisor:  # it was gone already
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
