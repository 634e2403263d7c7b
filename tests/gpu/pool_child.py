"""`python -m tests.gpu.pool_child ROLE FD EXPORTER NONCE …`: maps a pool of GPU memory and does one thing.

write BLOCK VALUE    fills a block, says `written`, and keeps the GPU busy until it is killed
read BLOCK           says the block's least and greatest value, and how long mapping took
poke OFFSET          stores one byte at this distance from the first block, says `stored` or `faulted`

python -m tests.gpu.pool_child worker RUN_DIR ID ROLE …    the same, with the memory of an attachment
"""

import os
import sys
import time
from pathlib import Path

import torch
import triton
import triton.language as tl

from compute.device import uuid_of
from holdfast.rundir import RunDir
from kvmanager.errors import KvError
from kvmanager.gpu_mapping import GpuPoolMapping, map_pool
from kvmanager.gpu_memory import allocation_bytes
from kvmanager.layout import Geometry, PoolLayout

LAYOUT = PoolLayout(Geometry(num_layers=4, num_kv_heads=8, head_dim=128, block_size=16, dtype="bfloat16"))
BLOCKS = 2**31 // LAYOUT.block_bytes  # 2 GiB
POOL_BYTES = BLOCKS * LAYOUT.block_bytes
ALLOCATION = allocation_bytes(POOL_BYTES)


@triton.jit
def store_one(start, offset):
    tl.store(start + offset, tl.full((), 1, tl.uint8))


def mapped(fd, exporter, nonce):
    return GpuPoolMapping(
        fd,
        LAYOUT,
        BLOCKS,
        device=uuid_of("cuda"),
        exporter=exporter,
        nonce=nonce,
        allocation=ALLOCATION,
    )


def write(mapping, block, value):
    mapping.pool[int(block)] = float(value)
    torch.cuda.synchronize()
    print("written", flush=True)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    while True:
        square = (square @ square).clamp(-1, 1)  # the queue is full: some kernel always runs


def read(mapping, block):
    found = mapping.pool[int(block)]
    print(float(found.min()), float(found.max()), flush=True)


def poke(mapping, offset):
    data = mapping.pool.flatten()[:1].view(torch.uint8)
    try:
        store_one[(1,)](data, int(offset))
        torch.cuda.synchronize()
    except RuntimeError:
        print("faulted", flush=True)
        os._exit(0)  # nothing of CUDA works in this process any more
    print("stored", flush=True)


ROLES = {"write": write, "read": read, "poke": poke}


def worker(run_dir, worker_id, role, *arguments):
    """Attaches as a worker does: the socket first, then the driver."""
    from kvmanager.client import attach
    from tests.kvmanager.processes import attach_spec

    sockets = RunDir(Path(run_dir))

    def spec():
        g = LAYOUT.geometry
        return attach_spec(
            sockets,
            device=uuid_of("cuda"),
            worker_id=worker_id,
            num_layers=g.num_layers,
            num_kv_heads=g.num_kv_heads,
            head_dim=g.head_dim,
            block_size=g.block_size,
            kv_dtype=g.dtype,
            peak_bytes=2**30,
        )

    with attach(sockets, spec, 120.0) as attachment:
        ROLES[role](map_pool(attachment, LAYOUT), *arguments)


def main(role, *arguments):
    if role == "worker":
        worker(*arguments)
        return
    fd, exporter, nonce, *rest = arguments
    torch.zeros(1, device="cuda")  # the context is there before anything is timed
    try:
        started = time.perf_counter()
        mapping = mapped(int(fd), exporter, bytes.fromhex(nonce))
        print(
            f"{exporter}: import, map, nonce: {(time.perf_counter() - started) * 1e3:.3f} ms", file=sys.stderr
        )
    except KvError as error:
        print(type(error).__name__, error.message, flush=True)
        return
    ROLES[role](mapping, *rest)


if __name__ == "__main__":
    main(*sys.argv[1:])
