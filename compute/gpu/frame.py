"""Where the arrays of a step stand in the words that travel to the GPU: one frame a step, the same on both sides.

    uniform (float64) | temperature … chunk_lengths, a word a row | starts, rows + 1 | ids … write_slots, a word a token

Every array begins at a multiple of 16 bytes, whatever the step: a kernel is compiled for how its arguments are aligned,
and no step may wait for a compiler. Block tables travel beside the frame. Arithmetic only: numpy cuts the host's side,
torch the device's.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

FLOATS: Final = ("temperature", "top_p", "min_p")
PER_ROW: Final = (*FLOATS, "top_k", "wanted", "lengths", "lasts", "chunk_lengths")
PER_TOKEN: Final = ("ids", "positions", "write_blocks", "write_slots")
ALIGNED: Final = 4  # words
Words = NDArray[np.int32]


class Arrays(NamedTuple):
    """A step's arrays, of numpy or of torch. int32, but for four."""

    uniform: Any  # [rows] float64: the draw's random number
    temperature: Any  # [rows] float32; 0 is greedy
    top_p: Any  # [rows] float32
    min_p: Any  # [rows] float32
    top_k: Any  # [rows]; 0: off
    wanted: Any  # [rows] whether a token is drawn
    lengths: Any  # [rows] tokens with KV once the step has written; 0 is padding
    lasts: Any  # [rows] the row's last token of this step
    chunk_lengths: Any  # [rows] the lengths of the rows of more than one token, from the first of them
    starts: Any  # [rows + 1] first token of each row of more than one token, from the first of them
    ids: Any  # [tokens] token id; below 0: drawn by row -1 - id of the step before
    positions: Any  # [tokens]
    write_blocks: Any  # [tokens] block of the token's slot; -1 is padding
    write_slots: Any  # [tokens]


@dataclass(frozen=True, slots=True)
class Frame:
    """A step of so many rows and tokens, padding included."""

    rows: int
    tokens: int

    @property
    def lengths_at(self) -> int:
        return aligned(2 * self.rows) + PER_ROW.index("lengths") * aligned(self.rows)

    @property
    def ids_at(self) -> int:
        return aligned(2 * self.rows) + len(PER_ROW) * aligned(self.rows) + aligned(self.rows + 1)

    @property
    def words(self) -> int:
        return self.ids_at + len(PER_TOKEN) * aligned(self.tokens)

    def on_host(self, words: Words) -> Arrays:
        return Arrays(**self._cut(words, np.float32, np.float64))

    def on_device(self, words: torch.Tensor) -> Arrays:
        return Arrays(**self._cut(words, torch.float32, torch.float64))

    def _cut(self, words: Any, float32: Any, float64: Any) -> dict[str, Any]:
        """Views of `words`, the first of which is aligned itself."""
        sizes = {"uniform": 2 * self.rows, **dict.fromkeys(PER_ROW, self.rows), "starts": self.rows + 1}
        parts, at = {}, 0
        for name, size in (sizes | dict.fromkeys(PER_TOKEN, self.tokens)).items():
            part = words[at : at + size]
            kind = float64 if name == "uniform" else float32 if name in FLOATS else None
            parts[name] = part if kind is None else part.view(kind)
            at += aligned(size)
        return parts


def aligned(words: int) -> int:
    return -(-words // ALIGNED) * ALIGNED
