"""`python -m tests.support.gpu_daemon --name=value …`: the daemon with allocators over the fake GPU."""

import sys

from holdfast import settings
from kvmanager import daemon
from kvmanager.config import KvManagerSettings

if __name__ == "__main__":
    pairs = (argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    flags = {name.replace("-", "_"): value for name, value in pairs}
    chosen = settings.load(KvManagerSettings, "kvmanager", flags)
    sys.exit(daemon.run(chosen, "tests.support.gpu_allocator"))
