"""`python -m tests.support.gpu_allocator …`: the allocator's own main, over the fake GPU."""

import sys

from kvmanager.gpu_allocator import main
from tests.support.fake_gpu import FakeGpu

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], FakeGpu))
