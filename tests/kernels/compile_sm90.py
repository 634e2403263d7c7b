"""Compiles every kernel for an H100/H200 by its own launcher, on a machine without a GPU; prints what is in the code.

Run in a process of its own without TRITON_INTERPRET. A driver that only names the target stands in for CUDA's, and
every launch stops after compilation.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

KERNELS: dict[str, Any] = {}
SUFFIX = {"bfloat16": "", "float8_e4m3": "_fp8"}


class Hopper:
    """What the compiler asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def compile_only() -> None:
    """From now on a launch compiles and returns."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        KERNELS[self._fn_name.rsplit(".", 1)[-1]] = kernel
        return kernel

    driver.set_active(Hopper())
    JITFunction.run = run


def report(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "tma": ptx.count("cp.async.bulk.tensor"),
        "cp_async": ptx.count("cp.async.cg"),
        "narrow_cp_async": ptx.count("cp.async.ca"),
        "waits_for_kernel_before": ptx.count("griddepcontrol.wait"),
        "prefetch": ptx.count("cp.async.bulk.prefetch.L2"),
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "local": int(re.search(r"LOCAL:(\d+)", usage)[1]),
        "shared": kernel.metadata.shared,
        "from_e4m3": ptx.count("cvt.rn.f16x2.e4m3x2"),
        "to_e4m3": ptx.count("cvt.rn.satfinite.e4m3x2.f32"),
    }


def launch_paged(dim: int, dtype: str) -> None:
    """The launchers of a pool of `dtype`, on CPU tensors that are never read."""
    from compute.kernels.gpu.copy_blocks import copy_blocks
    from compute.kernels.gpu.decode import Scratch, decode
    from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports
    from compute.kernels.gpu.layer import KVLayer, Scores
    from compute.kernels.gpu.prefill import prefill
    from compute.kernels.gpu.rope_kv_write import rope_kv_write
    from kvmanager.layout import Geometry, PoolLayout
    from kvmanager.mapping import as_pool

    kind = torch.bfloat16
    layout = PoolLayout(Geometry(num_layers=2, num_kv_heads=8, head_dim=dim, block_size=16, dtype=dtype))
    kv = KVLayer(as_pool(torch.empty(4 * layout.block_bytes, dtype=torch.uint8), layout, 4), 1)
    tables, lengths = torch.zeros((2, 16), dtype=torch.int32), torch.ones(2, dtype=torch.int32)
    q = torch.empty((2, 32, dim), dtype=kind)
    scores = Scores(scale=0.1)
    decode(q, torch.empty_like(q), kv, tables, lengths, scores, Scratch.allocate(2, 4, kv, 4))
    starts = torch.zeros(3, dtype=torch.int32)
    prefill(q, torch.empty_like(q), kv, tables, starts, lengths, 2048, scores)
    if supports(kv, (9, 0)):
        step = torch.empty((2, 48, dim), dtype=kind)
        for fresh in (None, step):
            hopper_prefill(
                step[:, :32], torch.empty_like(q), kv, tables, starts, lengths, 2048, scores, fresh=fresh
            )
    rope_kv_write(
        torch.empty((2, 48 * dim), dtype=kind), kv, torch.empty((2, 64, dim)), lengths, lengths, lengths,
        (torch.empty(dim), torch.empty(dim), 1e-6),
    )  # fmt: skip
    copy_blocks(kv.pool, torch.zeros((1, 3), dtype=torch.int32))


def launch_others() -> None:
    from compute.kernels.gpu.gate import gate
    from compute.kernels.gpu.linear import GpuLinear
    from compute.kernels.gpu.norm import add_norm
    from compute.kernels.gpu.sample import Draws, SampleScratch, sample

    kind = torch.bfloat16
    x = torch.empty((2, 4096), dtype=kind)
    add_norm(x, x.clone(), torch.empty(4096), 1e-5)
    gate(x, "silu")
    cpu = torch.device("cpu")
    logits, scratch = torch.empty((2, 128_256), dtype=kind), SampleScratch.allocate(2, 128_256, cpu)
    sample(logits, Draws.allocate(2, cpu), torch.zeros(2, dtype=torch.int32), scratch)
    product = GpuLinear(torch.empty((28_672, 4096), dtype=kind), None)
    product.gated(x, "silu")
    KERNELS["_skinny_gated"] = KERNELS.pop("_skinny")
    GpuLinear(torch.empty((4096, 14_336), dtype=kind), torch.empty(4096, dtype=kind))(x.new_empty(2, 14_336))


if __name__ == "__main__":
    compile_only()
    launch_others()
    found = {}
    for dtype, suffix in SUFFIX.items():
        launch_paged(int(sys.argv[1]), dtype)
        found |= {name + suffix: report(kernel) for name, kernel in KERNELS.items()}
        KERNELS.clear()
    print(json.dumps(found))
