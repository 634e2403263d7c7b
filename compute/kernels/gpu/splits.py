"""How a decode step is cut for the machine: splits of a row, keys of a turn. Plain arithmetic, decided on the host."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import torch
import triton

MAX_SPLITS: Final = 128
MIN_SPLIT_TOKENS: Final = 64
PROGRAMS_PER_SM: Final = 5  # at most; more splits only cost their merge
ENOUGH_BUSY: Final = 0.9
MERGE_TURN: Final = 16  # splits that one turn of the merge takes at G = 4, D = 128
MERGE_COST: Final = 0.05  # of the SMs' time, for such a turn
WIDE_GROUP: Final = 16  # above, a program has so much arithmetic that it wants an SM for itself


@dataclass(frozen=True, slots=True)
class Tile:
    """Keys a turn of the loop, warps of a program, turns loaded ahead."""

    block_n: int
    warps: int
    stages: int


@cache
def split_count(rows: int, kv_heads: int, group: int, longest: int, sm_count: int) -> int:
    """Splits of a row that keep every SM busy to the end: none where the rows alone do, none under MIN_SPLIT_TOKENS."""
    pairs = max(rows * kv_heads, 1)

    def busy(splits: int) -> float:
        """Share of the SMs' time that has work, as programs of equal length run in turns; less the merge."""
        share = pairs * splits / (sm_count * -(-pairs * splits // sm_count))
        return share - MERGE_COST * -(-splits // MERGE_TURN)

    if busy(1) + MERGE_COST >= ENOUGH_BUSY:
        return 1
    most = max(min(-(-longest // MIN_SPLIT_TOKENS), PROGRAMS_PER_SM * sm_count // pairs, MAX_SPLITS), 1)
    # Two programs of an SM hide each other's first loads.
    wanted = sm_count * 9 // 10 if group > WIDE_GROUP else sm_count * 3 // 2
    least = min(-(-wanted // pairs), most)
    return max(range(least, most + 1), key=lambda splits: (busy(splits), -splits))


def tile_for(head_dim: int, group: int, programs: int, splits: int, sm_count: int, *, is_fp8: bool) -> Tile:
    """The fastest of benchmarks/kernel_sweep.py on an H200: as many loads in flight an SM, whatever the programs.

    e4m3 is widened in registers: more warps share them.
    """
    if group > WIDE_GROUP:
        tile = Tile(128, 4, 3)
    elif splits > 1:
        tile = Tile(64, 2, 3)
    elif programs <= sm_count:
        tile = Tile(128, 8, 3)
    else:
        tile = Tile(64, 4, 2 if programs <= 4 * sm_count else 3)
    if is_fp8:
        tile = replace(tile, warps=max(tile.warps, tile.block_n // 16))
    return replace(tile, block_n=max(tile.block_n * 128 // triton.next_power_of_2(head_dim), 16))


@cache
def sm_count_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; those of an H200 where there is none (the interpreter)."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
