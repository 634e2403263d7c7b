"""Whether anybody listens on a stream socket of the run directory, by connecting to it and hanging up."""

import os
import socket
from pathlib import Path


def somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(os.fspath(path))
        except TimeoutError:
            return True  # its queue is full: somebody is there, and slow
        except OSError:
            return False
    return True
