"""Counter-based randomness: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC'11). A number is a pure function of (seed, position): nothing to save, nothing to hand over (invariant 6).

    key     = (seed low, seed high)                 the row's own 64-bit seed, see holdfast.mix
    counter = (position low, position high, 0, 0)   absolute position of the token being drawn, prompt included

Owns the generator, not what is drawn with it. numpy on the host: seeds and positions are known before the logits.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from holdfast.mix import mix

__all__ = ["mix", "philox", "uniform"]

Words = NDArray[np.uint64]

ROUNDS: Final = 10
MULTIPLIERS: Final = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
KEY_STEPS: Final = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
LOW: Final = np.uint64(0xFFFFFFFF)
HALF: Final = np.uint64(32)


def philox(counters: Words, keys: Words) -> Words:
    """Random words uint64[4, n] below 2**32 from counters [4, n] and keys [2, n], each below 2**32 too."""
    even, odd = counters[0::2], counters[1::2]  # words (0, 2) are multiplied, words (1, 3) are xored in
    for _ in range(ROUNDS):
        products = even * MULTIPLIERS  # below 2**64
        even, odd = (products[::-1] >> HALF) ^ odd ^ keys, products[::-1] & LOW
        keys = (keys + KEY_STEPS) & LOW
    return np.stack((even[0], odd[0], even[1], odd[1]))


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number of 53 random bits in [0, 1) for each (seed, position); both below 2**64."""
    seed, position = np.array(seeds, np.uint64), np.array(positions, np.uint64)
    zero = np.zeros_like(position)
    words = philox(np.stack((*_halves(position), zero, zero)), np.stack(_halves(seed)))
    bits: Words = (words[0] << HALF | words[1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def _halves(values: Words) -> tuple[Words, Words]:
    return values & LOW, values >> HALF
