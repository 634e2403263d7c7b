"""The seed of each continuation of one request (protocol rule 9). Standard library only: gateway and worker share it.

    mix(seed, 0) = seed        mix(seed, i) = f(f(seed) + i * GAMMA)        f: SplitMix64's finalizer, a bijection

For one seed the results of all i are distinct but for the fixed i = 0. The inner f keeps seeds that differ by
multiples of GAMMA from giving the same series, shifted.
"""

from typing import Final

GAMMA: Final = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd
FIRST: Final = 0xBF58476D1CE4E5B9
SECOND: Final = 0x94D049BB133111EB
MASK: Final = 2**64 - 1


def mix(seed: int, index: int) -> int:
    """The 64-bit seed of continuation `index` (>= 0) of a request with the 64-bit `seed`."""
    return seed if index == 0 else _finalize(_finalize(seed) + index * GAMMA)


def unmix(mixed: int, index: int) -> int:
    """The seed of which `mixed` is `mix(seed, index)`."""
    return mixed & MASK if index == 0 else _unfinalize(_unfinalize(mixed) - index * GAMMA)


def _finalize(value: int) -> int:
    """Every bit of the 64 depends on every bit of `value`."""
    value &= MASK
    value = ((value ^ value >> 30) * FIRST) & MASK
    value = ((value ^ value >> 27) * SECOND) & MASK
    return value ^ value >> 31


def _unfinalize(value: int) -> int:
    """What `_finalize` made `value` of: a shift is undone by shifting on, a product by the factor's inverse."""
    value &= MASK
    value = (value ^ value >> 31 ^ value >> 62) * pow(SECOND, -1, 2**64) & MASK
    value = (value ^ value >> 27 ^ value >> 54) * pow(FIRST, -1, 2**64) & MASK
    return value ^ value >> 30 ^ value >> 60
