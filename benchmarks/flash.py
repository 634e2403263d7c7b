"""FlashAttention's claim as the prompt grows: naive attention stores every score, the tiled kernels none.

    python -m benchmarks.flash [--device cuda|cpu] [--quick]

One prompt, causal, bf16, lengths from 1,024 on; 32 query heads over 8 KV heads of 128 on a GPU, a quarter of that with
heads of 64 on the CPU. Naive: scores = q·k in memory, masked, softmax, times v; grouped heads are extra queries, so no
key is repeated. Tiled, on a GPU: the prefill kernel that serves prompts, over a paged pool in random block order. On
the CPU: as a worker attends a prompt, in chunks of 2,048 tokens through torch's fused attention, which takes a chunk's
queries and keys in tiles (`compute.kernels.torch_cpu`); what it gathers from the pool and masks is counted.

Memory is the most that was allocated beyond queries, keys and values, the output included (on the CPU: by which the
process grew). Time is the median of single calls, the engines in turn. A length at which naive attention finds no
memory is a result: null.
"""

import argparse
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from compute.batch import Group
from compute.kernels.interface import AttentionSpec
from compute.kernels.torch_cpu import attend_group, gather, window_of
from compute.model.hf_config import Rope
from compute.model.rope import RotaryTable

Launch = Callable[[], Tensor]
LENGTHS = {"cuda": (1024, 2048, 4096, 8192, 16384, 32768), "cpu": (1024, 2048, 4096, 8192)}
HEADS = {"cuda": (32, 8, 128), "cpu": (8, 2, 64)}  # query heads, kv heads, head size
BLOCK = 16
CHUNK = 2048  # tokens of a step
HEAD_START = 2_000_000  # cycles that the GPU waits while the host enqueues a call's kernels


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[K, G·T, D] of queries [K, G·T, D] over keys and values [K, T, D]; query i of each T sees keys 0..i."""
    kv_heads, tokens, dim = k.shape
    scores = torch.matmul(q, k.transpose(1, 2)).mul_(dim**-0.5)  # [K, G·T, T]
    later = torch.ones((tokens, tokens), dtype=torch.bool, device=q.device).triu_(1)
    scores.view(kv_heads, -1, tokens, tokens).masked_fill_(later, float("-inf"))
    return torch.matmul(scores.softmax(-1), v)


def reference(q: Tensor, k: Tensor, v: Tensor, last: int) -> Tensor:
    """float64 [K, G, last, D] of the last queries."""
    kv_heads, tokens, dim = k.shape
    some = q.view(kv_heads, -1, tokens, dim)[:, :, -last:].double()
    scores = torch.einsum("kgnd,ksd->kgns", some, k.double()) * dim**-0.5
    later = (
        torch.arange(tokens, device=q.device) > torch.arange(tokens - last, tokens, device=q.device)[:, None]
    )
    return torch.einsum("kgns,ksd->kgnd", scores.masked_fill(later, float("-inf")).softmax(-1), v.double())


class OnGpu:
    """One length: the same prompt in a paged pool and dense."""

    def __init__(self, tokens: int) -> None:
        from benchmarks.kernel_shapes import Paged, Shape  # noqa: PLC0415 - Triton comes with CUDA's torch alone

        heads, kv_heads, dim = HEADS["cuda"]
        self.paged = Paged(Shape(rows=1, tokens=tokens, heads=heads, kv_heads=kv_heads, dim=dim), 1)
        keys, values = self.paged.dense(0)
        prompt = self.paged.prompt.view(tokens, kv_heads, -1, dim)
        self.qkv = prompt.permute(1, 2, 0, 3).reshape(kv_heads, -1, dim), keys[0], values[0]

    def launches(self) -> dict[str, Launch]:
        return {"naive": partial(naive, *self.qkv), "tiled": self.tiled}

    def tiled(self) -> Tensor:
        """[T, H, D], by the kernel that a worker takes on this GPU."""
        from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports  # noqa: PLC0415
        from compute.kernels.gpu.prefill import prefill  # noqa: PLC0415

        paged, layer = self.paged, self.paged.layer(0)
        out = torch.empty_like(paged.prompt)
        kernel = hopper_prefill if supports(layer, torch.cuda.get_device_capability()) else prefill
        kernel(
            paged.prompt, out, layer, paged.tables, paged.starts, paged.lengths, paged.shape.tokens, paged.shape.scores
        )  # fmt: skip
        return out

    def grouped(self, out: Tensor) -> Tensor:
        """[T, H, D] as [K, G, T, D]."""
        tokens, _, dim = out.shape
        return out.view(tokens, self.qkv[1].shape[0], -1, dim).permute(1, 2, 0, 3)

    @staticmethod
    def peak_bytes(launch: Launch) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        launch()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @staticmethod
    def milliseconds(launch: Launch) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
        begin.record()
        launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


class OnCpu:
    """One length: the prompt as one chunk of a step."""

    def __init__(self, tokens: int) -> None:
        heads, kv_heads, dim = HEADS["cpu"]
        torch.manual_seed(7)
        self.prompt = torch.randn(tokens, heads, dim, dtype=torch.bfloat16)
        self.pool = torch.randn(tokens // BLOCK, 1, 2, kv_heads, BLOCK, dim, dtype=torch.bfloat16)
        self.blocks = torch.randperm(tokens // BLOCK)
        keys, values = (
            self.pool[self.blocks, 0].permute(1, 2, 0, 3, 4).reshape(2, kv_heads, tokens, dim).unbind()
        )
        q = self.prompt.view(tokens, kv_heads, -1, dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
        self.qkv = q, keys, values
        rope = RotaryTable(Rope(), dim, self.pool.device)  # the prompt counts as rotated already
        self.spec = AttentionSpec(
            layer=0, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, softcap=None, window=None,
            rope=rope, q_norm=None, k_norm=None, norm_eps=1e-6,
        )  # fmt: skip

    def launches(self) -> dict[str, Launch]:
        return {"naive": partial(naive, *self.qkv), "tiled": self.tiled}

    def tiled(self) -> Tensor:
        """[T, H, D], chunk by chunk."""
        tokens, heads, dim = self.prompt.shape
        out, tables = torch.empty(tokens, heads * dim, dtype=torch.bfloat16), self.blocks.numpy()[None]
        for start in range(0, tokens, CHUNK):
            count = min(CHUNK, tokens - start)
            group = Group(0, count, np.array([count]), np.array([start + count]), tables)
            window, part = window_of(group, None, self.pool), slice(start, start + count)
            attend_group(
                self.spec, self.prompt[part], gather(self.pool, self.spec, window), window, out[part]
            )
        return out.view(tokens, heads, dim)

    grouped = OnGpu.grouped

    @staticmethod
    def peak_bytes(launch: Launch) -> int:
        """Growth of the process: its highest resident size in the call, beside that before it."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", "utf8")
        before = resident("VmRSS")
        launch()
        return max(resident("VmHWM") - before, 0)

    @staticmethod
    def milliseconds(launch: Launch) -> float:
        begin = perf_counter()
        launch()
        return 1e3 * (perf_counter() - begin)


def resident(name: str) -> int:
    """Bytes of this process, by a line of /proc/self/status."""
    line = next(
        one for one in Path("/proc/self/status").read_text("utf8").splitlines() if one.startswith(name)
    )
    return int(line.split()[1]) * 1024


def row(place: OnGpu | OnCpu, tokens: int, repeats: int) -> dict[str, Any]:
    """Figures of one length, by engine; null where there was no memory."""
    launches = place.launches()
    peaks = {name: peak(place, launch) for name, launch in launches.items()}
    able = {name: launch for name, launch in launches.items() if peaks[name] is not None}
    times: dict[str, list[float]] = {name: [] for name in able}
    for number in range(repeats):
        for name in sorted(able, reverse=bool(number % 2)):
            times[name].append(place.milliseconds(able[name]))
    return {
        "tokens": tokens,
        "peak_bytes": peaks,
        "ms": {name: median(times[name]) if name in able else None for name in launches},
        "error": error(place),
    }


def peak(place: OnGpu | OnCpu, launch: Launch) -> int | None:
    """None: out of memory. The first call, which may compile, is not the one that is looked at."""
    try:
        launch()
        return place.peak_bytes(launch)
    except (torch.OutOfMemoryError, MemoryError):
        return None


def error(place: OnGpu | OnCpu, last: int = 16) -> float:
    """Relative error of the tiled kernel over the last queries, against float64."""
    exact = reference(*place.qkv, last)
    answer = place.grouped(place.tiled())[:, :, -last:].double()
    return float((answer - exact).norm() / exact.norm())


def measure(device: str, lengths: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    rows = []
    for tokens in lengths:
        found = row(OnGpu(tokens) if device == "cuda" else OnCpu(tokens), tokens, repeats)
        rows.append(found)
        print(f"{tokens}: " + "; ".join(said(name, found) for name in ("naive", "tiled")))
    return rows


def said(name: str, found: dict[str, Any]) -> str:
    if found["peak_bytes"][name] is None:
        return f"{name} out of memory"
    return f"{name} {found['peak_bytes'][name] / 2**20:.1f} MiB, {found['ms'][name]:.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="three short lengths, three repeats")
    options = parser.parse_args()
    lengths = LENGTHS[options.device][: 3 if options.quick else None]
    with torch.inference_mode():
        rows = measure(options.device, lengths, 3 if options.quick else 15)
    names = ("query_heads", "kv_heads", "head_size")
    body: dict[str, Any] = {"heads": dict(zip(names, HEADS[options.device], strict=True)), "rows": rows}
    if options.device == "cuda":
        from benchmarks.kernels import gpu  # noqa: PLC0415

        body["gpu"] = gpu()
    report.write(f"flash-{report.chip(body['gpu']['gpu']) if 'gpu' in body else 'cpu'}", body)


if __name__ == "__main__":
    main()
