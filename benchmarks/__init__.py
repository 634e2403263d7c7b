"""Speed and memory, measured beside peers. Each module is a program; see docs/techniques.md and README.md."""

import os

from compute.__main__ import SPIN

# As a worker has it, before torch is imported: threads that spin for 15 ms turn a busy machine's steps into seconds.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
