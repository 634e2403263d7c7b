"""The products of a decode step beside cuBLAS, in one run: which tile reads each weight fastest.

    python -m benchmarks.kernel_skinny [OUT.json]

CUDA-graph replay over copies of the weight that are larger than L2 together; every variant's answer is checked against
float32 first. TB/s counts the weight alone. `+` marks launches that overlap the one before.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernel_shapes import DEVICE, relative_error
from benchmarks.kernel_timing import graph_of, times
from compute.kernels.gpu.gate import gate
from compute.kernels.gpu.skinny import MAX_ROWS, Scratch, Tile, skinny
from compute.kernels.gpu.splits import sm_count_of

ROTATED_BYTES: Final = 400_000_000
SHARED_BYTES: Final = 227 * 1024  # of a multiprocessor
COMPILERS: Final = 16
AHEAD: Final = 256
REPEATS: Final = 5
BOUND: Final = 1e-2  # relative to float32: bfloat16 rounds by 2e-3


@dataclass(frozen=True, slots=True)
class Product:
    """A weight of Llama 3.1 8B."""

    name: str
    outputs: int
    inputs: int
    activation: str | None = None

    @property
    def weight_bytes(self) -> int:
        return self.outputs * self.inputs * 2


PRODUCTS: Final = (
    Product("qkv", 6144, 4096),
    Product("out", 4096, 4096),
    Product("gate_up", 28_672, 4096),
    Product("gate_up silu", 28_672, 4096, "silu"),
    Product("down", 4096, 14_336),
    Product("lm_head", 128_256, 4096),
)
ROWS: Final = (1, 4, 8, 16)
BASES: Final = (
    (64, 128, 4, 5), (64, 128, 4, 3), (64, 64, 4, 7), (64, 64, 4, 5), (128, 128, 8, 3), (128, 64, 8, 6),
    (128, 64, 4, 6), (32, 128, 4, 6), (64, 256, 4, 5), (128, 128, 8, 6), (64, 128, 4, 10), (64, 256, 8, 3),
)  # fmt: skip
Launches = list[Callable[[], Tensor]]


def tiles(product: Product) -> Iterator[Tile]:
    """Each base with as many cuts as fill the multiprocessors once, and with one step less or more."""
    for block_n, block_k, warps, stages in BASES:
        resident = SHARED_BYTES // (stages * (block_n + 16) * block_k * 2 + 1024)
        strips = -(-product.outputs // block_n)
        full = max(resident * sm_count_of(DEVICE) // strips, 1)
        for cuts in {full, full - 1 or 2} if product.name != "lm_head" else {1}:
            yield Tile(block_n, block_k, warps, stages, cuts, None)


def variants(product: Product) -> list[Tile]:
    return [replace(tile, ahead=ahead) for tile in tiles(product) for ahead in (None, AHEAD)]


def compile_all(jobs: Sequence[tuple[Tile, str | None]]) -> None:
    """Fills the compiler's cache on disk."""
    for tile, activation in jobs:
        weight = torch.zeros((256, 4096), dtype=torch.bfloat16, device=DEVICE)
        skinny(weight[:1], weight, None, tile, Scratch.of(DEVICE), activation)
    torch.cuda.synchronize()


def compile_in_parallel(module: str) -> None:
    """`python -m module compile PART` for every part of its jobs, a process each."""
    command = [sys.executable, "-m", module, "compile"]
    children = [subprocess.Popen([*command, str(part)]) for part in range(COMPILERS)]
    ends = [child.wait() for child in children]
    assert not any(ends), "a tile does not compile"


def jobs() -> list[tuple[Tile, str | None]]:
    return list({(tile, each.activation): None for each in PRODUCTS for tile in variants(each)})


def by_library(product: Product, x: Tensor, weights: list[Tensor]) -> Launches:
    def launch(weight: Tensor) -> Tensor:
        y = functional.linear(x, weight)
        return y if product.activation is None else gate(y, product.activation)

    return [partial(launch, weight) for weight in weights]


def by_us(product: Product, x: Tensor, weights: list[Tensor], tile: Tile) -> Launches:
    scratch = Scratch.of(DEVICE)
    return [partial(skinny, x, weight, None, tile, scratch, product.activation) for weight in weights]


def exact_answer(product: Product, x: Tensor, weight: Tensor) -> Tensor:
    y = torch.cat([functional.linear(x.float(), part.float()) for part in weight.chunk(8)], 1)
    if product.activation is None:
        return y
    left, right = y.chunk(2, 1)
    return functional.silu(left) * right


def measure(product: Product, x: Tensor, weights: list[Tensor], exact: Tensor) -> list[dict[str, Any]]:
    """cuBLAS and every tile, in turn."""
    runs = {"cublas": graph_of(by_library(product, x, weights))}
    for tile in variants(product):
        launches = by_us(product, x, weights, tile)
        error = relative_error(launches[0](), exact[: len(x)].double())
        if not error < BOUND:
            print(f"WRONG {product.name} {len(x)} rows {tile}: {error:.2e}")
            continue
        runs[name_of(tile)] = graph_of(launches)
    found = times(runs, REPEATS, len(weights))
    return [row(product, len(x), name, median(micros)) for name, micros in found.items()]


def name_of(tile: Tile) -> str:
    size = f"{tile.block_n}×{tile.block_k} w{tile.warps} s{tile.stages} c{tile.cuts}"
    return size + ("" if tile.ahead is None else " +")


def row(product: Product, rows: int, name: str, micros: float) -> dict[str, Any]:
    rate = product.weight_bytes / micros / 1e6
    return {"product": product.name, "rows": rows, "tile": name, "us": micros, "TB/s": rate}


def show(found: list[dict[str, Any]]) -> None:
    ordered = sorted(found, key=lambda each: each["us"])
    print(f"\n{found[0]['product']}, {found[0]['rows']} rows")
    alone = [each for each in ordered if "+" not in each["tile"]]
    shown = [each for each in ordered if "+" in each["tile"]][:4] + alone[:4] + found[:1]
    for each in dict.fromkeys((each["tile"], each["us"], each["TB/s"]) for each in shown):
        print(f"    {each[0]:26} {each[1]:8.2f} us  {each[2]:.3f} TB/s")


def main() -> None:
    compile_in_parallel("benchmarks.kernel_skinny")
    everything = []
    for product in PRODUCTS:
        torch.manual_seed(7)
        shape = (product.outputs, product.inputs)
        scale = product.inputs**-0.5
        copies = max(-(-ROTATED_BYTES // product.weight_bytes), 2)
        weights = [
            torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(std=scale) for _ in range(copies)
        ]
        x = torch.randn((MAX_ROWS, product.inputs), dtype=torch.bfloat16, device=DEVICE)
        exact = exact_answer(product, x, weights[0])
        for rows in ROWS:
            found = measure(product, x[:rows], weights, exact)
            show(found)
            everything += found
        del weights
        torch.cuda.empty_cache()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(everything, indent=1), "utf8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_all(jobs()[int(sys.argv[2]) :: COMPILERS])
    else:
        main()
