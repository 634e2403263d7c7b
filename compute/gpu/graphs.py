"""Decode steps as CUDA graphs: one launch for a step, whatever its rows (up to a padded number) and their lengths.

    receive │ embed │ 32 × (qkv, rope + KV write, attention, out, norm, gate·up, gate, down, norm) │ logits │ draw │ publish

A graph has fixed addresses and grids. How long each row is, is read on the device, so graphs differ only by the padded
number of rows and by how often a row is split at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from compute.gpu.frame import Frame
from compute.gpu.inbox import Inbox

LENGTHS: Final = (2048, 16_384)  # beside the longest: a row is split as fits the next of them
FINE, COARSE = 8, 32  # padding of batches up to 64, and above
WARM_UPS: Final = 2

Body = Callable[[Frame, int], Tensor]  # everything from receive to publish, rows split so often; the hidden states


@dataclass(frozen=True, slots=True)
class Graph:
    replay: Callable[[], None]
    hidden: Tensor  # [P, E] of the last replay


class Graphs:
    """All graphs of one worker, captured before the first request."""

    def __init__(self, inbox: Inbox, max_rows: int, max_len: int) -> None:
        self.inbox = inbox
        self.sizes = list(batch_sizes(max_rows))
        self.lengths = sorted({min(length, max_len) for length in (*LENGTHS, max_len)})
        self.captured: dict[tuple[int, int], Graph] = {}  # by rows and splits
        self.memory: tuple[int, int] | None = None

    def wanted(self) -> list[tuple[int, int]]:
        """(rows, splits) of every graph, the largest first: the small ones fit into the memory of the large."""
        pairs = {(rows, self.inbox.splits(rows, longest)) for rows in self.sizes for longest in self.lengths}
        return sorted(pairs, reverse=True)

    def capture(self, rows: int, splits: int, body: Body) -> None:
        """`body` is run a few times first: what it compiles and allocates once must not be part of the graph."""
        frame = Frame(rows, rows)
        for _ in range(WARM_UPS):
            body(frame, splits)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self.memory, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            hidden = body(frame, splits)
        self.memory = graph.pool()
        self.captured[rows, splits] = Graph(graph.replay, hidden)

    def find(self, rows: int, longest: int) -> tuple[int, Graph]:
        """The padded number of rows, and the graph for a step of so many rows up to `longest` tokens long."""
        padded = next(size for size in self.sizes if size >= rows)
        reach = next(length for length in self.lengths if length >= longest)
        return padded, self.captured[padded, self.inbox.splits(padded, reach)]


def batch_sizes(most: int) -> Iterator[int]:
    """1, 2, 4, 8, 16 … 64 by eights, then by 32, up to `most` itself."""
    size = 1
    while size < most:
        yield size
        size = size * 2 if size < FINE else size + (FINE if size < 8 * FINE else COARSE)
    yield most

