"""Kernels that are launched while the one before them still runs: programmatic dependent launch, Hopper and later.

A kernel that takes part lets the next one come early, most as soon as all their own programs have begun. It waits for
the one before to be complete, its writes seen, ahead of anything that depends on it: of every read of what a kernel
writes, and of every write. What is left to do earlier is to be there, and to read weights. A kernel that takes no part
waits for everything before it, as always.
"""

from functools import cache
from typing import Final

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.driver import driver

FIRST_ARCH: Final = 90


@cache
def overlaps() -> bool:
    """Whether launches here overlap: not on older GPUs, not in the interpreter."""
    return not knobs.runtime.interpret and driver.active.get_current_target().arch >= FIRST_ARCH


@triton.jit
def take_turns(OVERLAPS: tl.constexpr):
    """What a kernel launched with launch_pdl does first; before it, it may read what no kernel writes."""
    give_turn(OVERLAPS)
    await_turn(OVERLAPS)


@triton.jit
def give_turn(OVERLAPS: tl.constexpr):
    """The next kernel may come once every program is here. A long kernel says so at its end: who waits takes room."""
    if OVERLAPS:
        gdc_launch_dependents()


@triton.jit
def await_turn(OVERLAPS: tl.constexpr):
    """The kernel before is complete."""
    if OVERLAPS:
        gdc_wait()
