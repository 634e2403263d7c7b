"""Starts workers in a few hundred milliseconds: a process that has imported everything and forks on request.

Reads lines of JSON {"argv": […], "log": PATH} from stdin, answers with the child's pid. Ends with its starter.
"""

import ctypes
import json
import os
import signal
import sys

import compute.gpu.support
import compute.serve  # noqa: F401 - so that a fork finds it loaded
from compute.__main__ import main
from tools.part import PR_SET_PDEATHSIG


def child(order: dict[str, object]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.argv = ["compute", *order["argv"]]  # type: ignore[misc]
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    os._exit(code or 0)


def serve() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
