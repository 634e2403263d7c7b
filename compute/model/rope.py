"""Rotary position embeddings: frequencies by kind, and the cos/sin rows of a step's positions.

The rotation pairs dimension i with i + D/2. With the first half of `sin` negated it is one multiply-add:
x·cos + roll(x, D/2)·sin.
"""

import math
from typing import Final

import torch
from torch import Tensor

from compute.model.hf_config import Rope

FIRST_POSITIONS: Final = 1024


def inverse_frequencies(rope: Rope, dim: int) -> Tensor:
    """[D/2], float32: how far each pair turns per position."""
    frequencies = 1.0 / rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, frequencies)
    if rope.kind == "yarn":
        return _yarn(rope, frequencies, dim)
    return frequencies


def _llama3(rope: Rope, frequencies: Tensor) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    turns = rope.original_max * frequencies / (2 * math.pi)  # full turns within the trained context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(rope: Rope, frequencies: Tensor, dim: int) -> Tensor:
    """As llama3, but the blend is a ramp over dimensions, between two counts of turns."""

    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_max / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if high == low else 0.0
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def attention_factor(rope: Rope) -> float:
    """What cos and sin are multiplied by: 1 but for yarn."""
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


class RotaryTable:
    """cos and signed sin of one rope by position. The table grows with the longest sequence seen."""

    def __init__(self, rope: Rope, dim: int, device: torch.device) -> None:
        frequencies = inverse_frequencies(rope, dim)
        self.frequencies = torch.cat((frequencies, frequencies)).to(device)  # [D]
        self.sign = torch.cat((-torch.ones(dim // 2), torch.ones(dim // 2))).to(device)  # [D]
        self.factor = attention_factor(rope)
        self.table = self.computed(FIRST_POSITIONS)

    def rows(self, positions: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """cos, signed sin: [T, 1, D] float32 each, for positions [T], all below `limit`."""
        if limit > self.table.shape[1]:
            self.reach(max(limit, 2 * self.table.shape[1]))
        cos, sin = self.table[:, positions, None]
        return cos, sin

    def reach(self, count: int) -> None:
        """Rows for positions below `count`."""
        self.table = self.computed(count)

    def computed(self, count: int) -> Tensor:
        """[2, count, D]"""
        angles = (
            torch.arange(count, dtype=torch.float32, device=self.frequencies.device)[:, None]
            * self.frequencies
        )
        return torch.stack((angles.cos() * self.factor, angles.sin() * (self.sign * self.factor)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D] turned by rows [T, 1, D]."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)
