"""`python -m tests.support.gpu_daemon --name=value …`: the daemon with allocators over the fake GPU."""

import sys

from kvmanager import standby

if __name__ == "__main__":
    sys.exit(standby.main(sys.argv[1:], "tests.support.gpu_allocator"))
