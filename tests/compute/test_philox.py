"""compute.philox and holdfast.mix: every (seed, position) has one number, the same on every machine."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute.philox import mix, philox, uniform
from holdfast.mix import unmix

# The distribution's own known-answer vectors for philox4x32-10: counter, key, answer.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
WORD = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_gives_the_known_answers(counter, key, answer):
    words = philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
    assert tuple(words[:, 0]) == answer


def test_vectorised_answers_are_those_of_each_alone():
    counters = np.array([known[0] for known in KNOWN], np.uint64).T
    keys = np.array([known[1] for known in KNOWN], np.uint64).T
    assert philox(counters, keys).T.tolist() == [list(known[2]) for known in KNOWN]


def test_uniform_is_made_of_the_first_two_words():
    """Counter 0, key 0: the first known answer."""
    assert uniform([0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=20))
def test_a_number_depends_on_nothing_but_its_seed_and_position(pairs):
    seeds, positions = zip(*pairs, strict=True)
    together = uniform(seeds, positions)
    assert together.tolist() == [uniform([s], [p])[0] for s, p in pairs]
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize("bit", range(64))
def test_each_bit_of_seed_and_position_counts(bit):
    base = uniform([12345], [678])[0]
    assert uniform([12345 ^ 1 << bit], [678])[0] != base
    assert uniform([12345], [678 ^ 1 << bit])[0] != base


@pytest.mark.parametrize("along", ["positions", "seeds"])
def test_numbers_are_uniform_and_uncorrelated(along):
    """Along the positions of one seed, and along neighbouring seeds at one position."""
    many = list(range(100_000))
    numbers = uniform([7] * len(many), many) if along == "positions" else uniform(many, [7] * len(many))
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # 99 degrees of freedom: p = 1e-4
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.015


def test_no_rows_give_no_numbers():
    assert uniform([], []).shape == (0,)


# ------------------------------------------------------------------------------------------------- mix

# Pinned: a request that is resumed after an upgrade must go on with the seeds it began with.
PINNED = {
    (0, 0): 0,
    (0, 1): 0xE220A8397B1DCDAF,  # SplitMix64's own first number of seed 0
    (42, 0): 42,
    (42, 1): 0x989B3F130A063869,
    (42, 3): 0x2A990BE63A01B2D5,
    (2**64 - 1, 0): 2**64 - 1,
    (2**64 - 1, 63): 0x0731B1D17E5E71A1,
}


@pytest.mark.parametrize(("given_", "seed"), PINNED.items())
def test_mix_is_pinned(given_, seed):
    assert mix(*given_) == seed


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63, 2**64 - 1])
def test_the_seed_of_a_request_is_found_from_any_of_its_indexes(seed):
    assert {unmix(mix(seed, index), index) for index in range(64)} == {seed}


def test_mix_is_the_same_in_a_process_without_numpy():
    """The gateway's view: the module alone, no torch and no numpy beside it."""
    code = "import sys; from holdfast.mix import mix; print(mix(42, 3), 'numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(mix(42, 3)), "False", "False"]


@given(WORD)
def test_index_zero_keeps_the_seed_and_the_others_differ(seed):
    seeds = [mix(seed, index) for index in range(64)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 64
    assert all(0 <= value < 2**64 for value in seeds)


def test_neighbouring_seeds_share_no_continuation():
    seeds = [mix(seed, index) for seed in range(500) for index in range(1, 64)]
    assert len(set(seeds)) == len(seeds)


def test_half_of_the_bits_flip_when_one_does():
    flips = [(mix(5, 9) ^ mix(5 ^ 1 << bit, 9)).bit_count() for bit in range(64)]
    assert 28 < sum(flips) / 64 < 36
