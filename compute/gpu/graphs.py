"""Decode steps as CUDA graphs: one launch for a step, whatever its rows (up to a padded number) and their lengths.

    receive │ embed │ layers × (qkv, rope + KV write, attention, out, norm, gate·up, gate, down, norm) │ draw │ publish

A graph has fixed addresses and grids. How long each row is, is read on the device, so graphs differ only by the padded
number of rows and by how often a row is split at most.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from torch import Tensor

from compute.gpu.frame import Frame
from compute.gpu.inbox import Inbox
from compute.gpu.stream import Graph, Stream

LENGTHS: Final = (2048, 16_384)  # beside the longest: a row is split as fits the next of them
FINE, COARSE = 8, 32  # padding of batches up to 64, and above

Body = Callable[
    [Frame, int], Tensor
]  # everything from receive to publish, rows split so often; the hidden states


class Graphs:
    """All graphs of one worker."""

    def __init__(self, inbox: Inbox, max_rows: int, max_len: int) -> None:
        self.inbox = inbox
        self.sizes = list(batch_sizes(max_rows))
        self.lengths = sorted({min(length, max_len) for length in (*LENGTHS, max_len)})
        self.captured: dict[tuple[int, int], Graph] = {}  # by rows and splits

    def capture(self, stream: Stream, body: Body) -> None:
        """All of them, before the first step; the largest first: the small ones fit into its memory."""
        pairs = {(rows, self.inbox.splits(rows, longest)) for rows in self.sizes for longest in self.lengths}
        for rows, splits in sorted(pairs, reverse=True):
            self.inbox.ring.blank(Frame(rows, rows))
            self.captured[rows, splits] = stream.graph(partial(body, Frame(rows, rows), splits))

    def find(self, rows: int, longest: int) -> tuple[int, Graph]:
        """The padded number of rows, and the graph for a step of so many rows up to `longest` tokens long."""
        padded = next(size for size in self.sizes if size >= rows)
        reach = next(length for length in self.lengths if length >= longest)
        return padded, self.captured[padded, self.inbox.splits(padded, reach)]


def batch_sizes(most: int) -> Iterator[int]:
    """1, 2, 4, 8, then by eights to 64, then by 32, up to `most` itself."""
    size = 1
    while size < most:
        yield size
        size = size * 2 if size < FINE else size + (FINE if size < 8 * FINE else COARSE)
    yield most
