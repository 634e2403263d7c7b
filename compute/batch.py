"""A step plan as arrays: the tokens of all rows behind one another, and groups of rows that attend together.

    tokens   d d d d | c c c c c c . . | c c c | p p      d: decode rows, c: chunks, p: padding to a multiple of 4

Decode rows come first and form one group of width 1. Chunks follow, longest first, in groups whose members have
similar lengths, so that a group may be padded to its longest member. Padding tokens compute and write nothing
that is read: fp32 matrix products round by their number of rows (1, 2-3, 4 and more differ), and this keeps a
row's values free of who shares its step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compute.plan import StepPlan, StepRow

ROW_GRID: Final = 4
GROUP_SPREAD: Final = 2  # longest over shortest member, in tokens of the chunk and of the context

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """`B` rows of up to `width` new tokens each; their tokens are [first, first + sum(counts)) of the step."""

    first: int
    width: int
    counts: Ints  # [B] new tokens
    lengths: Ints  # [B] tokens with KV once this step has written
    tables: Ints  # [B, most blocks]; beyond a row's last block its first one is repeated

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def dense(self) -> bool:
        return self.num_tokens == self.width * len(self.counts)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready for the decoder. T counts padding, N does not."""

    num_tokens: int  # N
    token_ids: Tensor  # [T]
    positions: Tensor  # [T]
    write_blocks: Tensor  # [N] block of each token's slot
    write_slots: Tensor  # [N] slot within the block
    groups: tuple[Group, ...]
    limit: int  # above every position
    row_starts: tuple[int, ...]  # for each row of the plan, its first token's place


def build(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """The arrays of a plan. Rows hold at least one token and blocks for all of it."""
    rows = plan.rows
    counts = np.fromiter((len(row.token_ids) for row in rows), np.int64, len(rows))
    order = np.argsort(-np.where(counts == 1, np.iinfo(np.int64).max, counts), kind="stable")
    ordered = [rows[i] for i in order]
    counts = counts[order]
    starts = np.fromiter((row.start for row in ordered), np.int64, len(rows))
    firsts = np.cumsum(counts) - counts
    total = int(counts.sum())
    positions = np.arange(total) + np.repeat(starts - firsts, counts)
    tables = padded_tables(ordered)
    blocks = tables[np.repeat(np.arange(len(rows)), counts), positions // block_size]
    padded = -(-total // ROW_GRID) * ROW_GRID
    ids = np.zeros((2, padded), np.int64)
    ids[0, :total] = np.fromiter((token for row in ordered for token in row.token_ids), np.int64, total)
    ids[1, :total] = positions
    row_starts = np.empty(len(rows), np.int64)
    row_starts[order] = firsts
    token_ids, where = torch.from_numpy(ids).to(device)
    write = torch.from_numpy(np.stack((blocks, positions % block_size))).to(device)
    return Batch(
        num_tokens=total,
        token_ids=token_ids,
        positions=where,
        write_blocks=write[0],
        write_slots=write[1],
        groups=tuple(group_rows(firsts, counts, starts + counts, tables)),
        limit=int(positions.max()) + 1,
        row_starts=tuple(row_starts.tolist()),
    )


def padded_tables(rows: Sequence[StepRow]) -> Ints:
    """[rows, most blocks]: each row's block ids, then its first again."""
    widest = max(len(row.blocks) for row in rows)
    tables = np.empty((len(rows), widest), np.int64)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row.blocks)] = row.blocks
        table[len(row.blocks) :] = row.blocks[0]
    return tables


def group_rows(firsts: Ints, counts: Ints, lengths: Ints, tables: Ints) -> list[Group]:
    """Consecutive rows of alike length as groups; rows of one token always share one."""
    groups = []
    begin = 0
    for end in range(1, len(counts) + 1):
        if end < len(counts) and alike(counts[begin:end], counts[end], lengths[begin:end], lengths[end]):
            continue
        part = slice(begin, end)
        width = int(counts[part].max())
        groups.append(Group(int(firsts[begin]), width, counts[part], lengths[part], tables[part]))
        begin = end
    return groups


def alike(counts: Ints, count: np.int64, lengths: Ints, length: np.int64) -> bool:
    """Whether a further row costs a group at most its own size again in padding."""
    if counts[0] == 1 or count == 1:
        return bool(counts[0] == count)
    spread = max(lengths.max(), length) / min(lengths.min(), length)
    return bool(counts[0] <= GROUP_SPREAD * count and spread <= GROUP_SPREAD)
