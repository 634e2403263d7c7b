"""Every kernel compiles for an H100/H200 without one, and uses what makes it fast there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAD_DIMS = (64, 128)  # that the Gluon prefill takes
KERNELS = {
    "_decode", "_prefill", "_rope_kv_write", "_add_norm", "_gate", "_copy_blocks", "_sample_scan", "_sample_pick",
    "_decode_fp8", "_prefill_fp8", "_rope_kv_write_fp8", "_copy_blocks_fp8",
}  # fmt: skip


def compiled(dim: int, cache: Path) -> dict[str, dict[str, Any]]:
    environment = dict(os.environ, TRITON_CACHE_DIR=str(cache))
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.compile_sm90", str(dim)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "dim", [128, *(pytest.param(dim, marks=pytest.mark.full) for dim in (32, 64, 80, 96, 256))]
)
def test_compiles_for_sm_90(dim: int, tmp_path: Path) -> None:
    kernels = compiled(dim, tmp_path)
    assert kernels.keys() >= KERNELS
    assert kernels["_prefill"]["wgmma"] > 0  # the tensor cores' own instruction, not the older mma.sync
    assert kernels["_prefill"]["cp_async"] > 0  # tiles are loaded ahead
    assert kernels["_decode"]["cp_async"] > 0
    assert kernels["_sample_pick"]["cp_async"] > 0
    assert kernels["_prefill"]["stack"] <= 128  # the fastest tile spills a little, outside its loop
    if dim in HEAD_DIMS:
        assert kernels["_hopper_prefill"]["wgmma"] > 0
        assert kernels["_hopper_prefill"]["tma"] > 0
        assert kernels["_hopper_prefill"]["stack"] <= 64  # a few scalars between two tiles
    assert kernels["_prefill_fp8"]["wgmma"] > 0
    assert kernels["_prefill_fp8"]["stack"] <= 64
    for name in ("_decode_fp8", "_prefill_fp8"):  # the hardware widens e4m3, two elements at once
        assert kernels[name]["from_e4m3"] > 0
    assert kernels["_rope_kv_write_fp8"]["to_e4m3"] > 0
    assert "_hopper_prefill_fp8" not in kernels
    for name in KERNELS - {"_prefill", "_prefill_fp8"}:
        assert kernels[name]["stack"] == 0, f"{name} spills registers"
