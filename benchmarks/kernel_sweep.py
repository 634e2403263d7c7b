"""Which tile is fastest, by shape: prints a table that the constants in `compute.kernels.gpu` are taken from.

python -m benchmarks.kernel_sweep [decode|prefill|decode-fp8|prefill-fp8] [OUT.json]
"""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.kernel_shapes import Paged, Shape
from benchmarks.kernel_timing import graph_of, times
from compute.kernels.gpu import prefill as prefill_module
from compute.kernels.gpu import splits as splits_module
from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.layer import KVLayer
from compute.kernels.gpu.prefill import prefill

DECODE = [
    Shape(rows=b, tokens=s)
    for b, s in ((64, 4096), (8, 16384), (1, 65536), (256, 1024), (16, 1024), (1, 1024))
]
PREFILL = [Shape(rows=b, tokens=s) for b, s in ((8, 2048), (2, 8192), (1, 16384))]
DECODE_TILES = [
    splits_module.Tile(*tile)
    for tile in (
        (32, 2, 4), (32, 4, 3), (32, 4, 5), (32, 2, 6), (64, 2, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 3),
        (128, 4, 2), (128, 4, 3), (128, 8, 3), (64, 4, 6), (128, 8, 2),
    )
]  # fmt: skip
PREFILL_TILES = [
    prefill_module.Tile(*tile)
    for tile in (
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (128, 32, 8, 4),
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 32, 4, 4), (128, 64, 4, 3),
        (256, 64, 8, 2), (128, 128, 4, 2),
    )
]  # fmt: skip
PROGRAMS_PER_SM = (1, 2, 4, 8)


def decode_once(paged: Paged, tile: splits_module.Tile, splits: int) -> list[Callable[[], object]]:
    shape = paged.shape
    out = torch.empty_like(paged.queries)
    scratch = None
    if splits > 1:
        scratch = Scratch.allocate(shape.rows, splits, paged.layer(0), shape.heads // shape.kv_heads)

    def launch(layer: KVLayer) -> None:
        decode(paged.queries, out, layer, paged.tables, paged.lengths, shape.scores, scratch, tile)

    return [partial(launch, paged.layer(i)) for i in range(paged.sets)]


def prefill_once(paged: Paged, tile: prefill_module.Tile) -> Callable[[], object]:
    out = torch.empty_like(paged.prompt)
    shape = paged.shape
    return lambda: prefill(
        paged.prompt,
        out,
        paged.layer(0),
        paged.tables,
        paged.starts,
        paged.lengths,
        shape.tokens,
        shape.scores,
        tile,
    )


def compile_one(job: tuple[str, Any, int]) -> str:
    """In a process of its own: fills the compiler's cache on disk."""
    kind, tile, splits = job
    shape = Shape(rows=1, tokens=64, fp8=kind.endswith("fp8"))
    try:
        if kind.startswith("decode"):
            decode_once(Paged(shape, 4), tile, splits)[1]()
        else:
            prefill_once(Paged(shape, 2), tile)()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - a tile that does not fit is a row of the table, not a failure
        return f"{type(error).__name__}: {str(error)[:80]}"
    return ""


def sweep(kind: str) -> list[dict[str, Any]]:
    is_decode, fp8 = kind.startswith("decode"), kind.endswith("fp8")
    tiles: list[Any] = DECODE_TILES if is_decode else PREFILL_TILES
    jobs = [(kind, tile, splits) for tile in tiles for splits in ((1, 2) if is_decode else (1,))]
    faults = {job: compile_one(job) for job in jobs}
    usable = [tile for tile in tiles if not faults[(kind, tile, 1)]]
    for tile in tiles:
        if tile not in usable:
            print(tile, faults[(kind, tile, 1)])
    return decode_rows(usable, fp8=fp8) if is_decode else prefill_rows(usable, fp8=fp8)


def decode_rows(tiles: list[Any], *, fp8: bool) -> list[dict[str, Any]]:
    rows = []
    for shape in (replace(each, fp8=fp8) for each in DECODE):
        paged = Paged(shape)
        pairs = {
            max(min(132 * n // (shape.rows * shape.kv_heads), shape.tokens // 128, 128), 1)
            for n in PROGRAMS_PER_SM
        }
        for tile, splits in itertools.product(tiles, sorted(pairs)):
            run = graph_of(decode_once(paged, tile, splits))
            micros = median(times({"x": run}, 7, paged.sets)["x"])
            rows.append({"shape": str(shape), "tile": str(tile), "splits": splits, "us": micros})
        del paged
        torch.cuda.empty_cache()
    return rows


def prefill_rows(tiles: list[Any], *, fp8: bool) -> list[dict[str, Any]]:
    rows = []
    for shape in (replace(each, fp8=fp8) for each in PREFILL):
        paged = Paged(shape, 2)
        for tile in tiles:
            micros = median(times({"x": prefill_once(paged, tile)}, 9)["x"])
            rows.append(
                {
                    "shape": str(shape),
                    "tile": str(tile),
                    "us": micros,
                    "tflops": shape.causal_flops / micros / 1e6,
                }
            )
    return rows


def main() -> None:
    kind = sys.argv[1]
    rows = sweep(kind)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(rows, indent=1), "utf8")
    for shape in dict.fromkeys(row["shape"] for row in rows):
        best = sorted((row for row in rows if row["shape"] == shape), key=lambda row: row["us"])
        for row in best[:8]:
            print(
                shape,
                *(f"{key}={value:.1f}" if isinstance(value, float) else value for key, value in row.items()),
            )


if __name__ == "__main__":
    main()
