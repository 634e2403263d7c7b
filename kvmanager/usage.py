"""What a pool's token slots are used for, at this moment.

slots = allocated + reserved + cached + quarantined + free
allocated   in a row: [ a token ][ fragmented: no token yet ], or on its way back with its row's Release
shared      not a part of these: slots that would be allocated too if every row had blocks of its own
"""

from dataclasses import dataclass
from typing import NamedTuple

from kvmanager.blocks import SEALED
from kvmanager.parts import Parts
from kvmanager.sequences import Sequence


class PrefixUse(NamedTuple):
    """What look-ups gave since this daemon started."""

    queries: int  # prompt tokens looked up
    hits: int  # of these, found
    partial: int  # of these, by a copy of part of a block
    waits: int  # times a sequence waited for blocks that another was computing


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """As in kvmanager.proto; in token slots."""

    slots: int
    allocated: int
    reserved: int
    cached: int
    quarantined: int
    shared: int
    fragmented: int
    tokens: int


def memory(parts: Parts) -> MemoryUse:
    """Looks at running sequences and counters, never at every block."""
    size, blocks = parts.block_size, parts.blocks
    _, granted, tail, sealed, quarantined = blocks.counts
    only_read = sum(
        blocks.state[b] == SEALED and blocks.refs[b] == count for b, count in blocks.reads.items()
    )
    named = tail + sealed - blocks.cached.length - only_read
    running = parts.sequences.open.values()
    stranded = sum(len(parts.rows.blocks[s.row]) - s.kv_len // size for s in orphans_with_rows(parts))
    tokens = sum(sequence.kv_len for sequence in running)
    return MemoryUse(
        slots=blocks.num_blocks * size,
        allocated=named * size,
        reserved=granted * size,
        cached=(blocks.cached.length + only_read) * size,
        quarantined=quarantined * size,
        shared=(parts.rows.entries - stranded - named) * size,
        fragmented=sum(len(parts.rows.blocks[s.row]) for s in running) * size - tokens,
        tokens=tokens,
    )


def orphans_with_rows(parts: Parts) -> list[Sequence]:
    """Their begun tails are in quarantine."""
    return [sequence for sequence in parts.sequences.orphans.values() if sequence.row >= 0]


def prefix(parts: Parts) -> PrefixUse:
    return PrefixUse(parts.prefix_queries, parts.prefix_hits, parts.partial_hits, parts.followers.waits)
