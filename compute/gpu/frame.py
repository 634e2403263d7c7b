"""Where the arrays of a step stand in the words that travel to the GPU: one frame a step, the same on both sides.

    uniform (float64) | temperature … lasts, a word a row | starts, rows + 1 | ids … write_slots, a word a token

Block tables travel beside the frame. Arithmetic only: numpy cuts the host's side, torch the device's.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

FLOATS: Final = ("temperature", "top_p", "min_p")
PER_ROW: Final = (*FLOATS, "top_k", "wanted", "lengths", "lasts")
PER_TOKEN: Final = ("ids", "positions", "write_blocks", "write_slots")
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
    def ids_at(self) -> int:
        return 2 * self.rows + len(PER_ROW) * self.rows + self.rows + 1

    @property
    def lengths_at(self) -> int:
        return 2 * self.rows + PER_ROW.index("lengths") * self.rows

    @property
    def words(self) -> int:
        return self.ids_at + len(PER_TOKEN) * self.tokens

    def on_host(self, words: Words) -> Arrays:
        return Arrays(**self._cut(words, np.float32, np.float64))

    def on_device(self, words: torch.Tensor) -> Arrays:
        return Arrays(**self._cut(words, torch.float32, torch.float64))

    def _cut(self, words: Any, float32: Any, float64: Any) -> dict[str, Any]:
        """Views of `words`, the first of which is aligned to eight bytes."""
        rows, at = self.rows, 2 * self.rows
        parts = {"uniform": words[:at].view(float64)}
        for name in PER_ROW:
            part = words[at : at + rows]
            parts[name] = part.view(float32) if name in FLOATS else part
            at += rows
        parts["starts"] = words[at : at + rows + 1]
        at += rows + 1
        for name in PER_TOKEN:
            parts[name] = words[at : at + self.tokens]
            at += self.tokens
        return parts
