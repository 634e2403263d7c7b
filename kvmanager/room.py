"""Room for records: how many tokens one may have, who gives way, and what searches that run are owed.

A beam search begins only when all its records will find room, and nobody else is given that room: one that runs does
not run out.
"""

from typing import Final

from kvmanager.errors import PoolTooSmall, ResourceExhausted
from kvmanager.layout import within
from kvmanager.parts import Parts
from kvmanager.sequences import Role, Sequence

RECORDS_OF_A_BEAM: Final = 3  # its own, its successor's within one commit, a hypothesis'


def capacity_of(parts: Parts, prompt_len: int, max_tokens: int) -> int:
    """Tokens that a record has room for. Invalid or PoolTooSmall if there can never be as many."""
    capacity = prompt_len + max_tokens
    within("token_ids length + max_tokens", capacity, 1, parts.spec.max_model_len)
    refuse_too_large(parts, capacity)
    return capacity


def refuse_too_large(parts: Parts, tokens: int) -> None:
    """One block is kept back: a sequence alone must be able to finish beside another's tail."""
    needed, usable = parts.blocks_of(tokens), parts.blocks.num_blocks - 1
    if needed > usable:
        raise PoolTooSmall(
            f"prompt and max_tokens need {needed} blocks, the pool has {usable}",
            needed_blocks=needed,
            usable_blocks=usable,
        )


def make_room(parts: Parts, sequence: Sequence, request: bytes, capacity: int) -> None:
    """Store the record. Finished records make room before their time, oldest first."""
    while not (
        parts.rows.unused
        and leaves_room(parts, sequence, capacity)
        and parts.sequences.add(sequence, request, capacity)
    ):
        forget_oldest(parts)


def leaves_room(parts: Parts, sequence: Sequence, capacity: int) -> bool:
    """Whether the searches that run still find room for all their records: in one commit as many beams begin as end,
    and as many hypotheses are kept. A search itself begins only when it leaves that room."""
    table = parts.sequences
    if sequence.group in table.searches or not (table.searches or sequence.role == Role.SEARCH):
        return True
    owed_records, owed_tokens = owed(parts)
    if sequence.role == Role.SEARCH:
        most = RECORDS_OF_A_BEAM * sequence.width
        owed_records, owed_tokens = owed_records + most, owed_tokens + most * capacity
    return len(table.unused) > owed_records and table.token_arena.free_units >= owed_tokens + capacity


def owed(parts: Parts) -> tuple[int, int]:
    """Records and tokens that running searches may still take."""
    records = tokens = 0
    for group, width in parts.sequences.searches.items():
        members = [one for one in parts.sequences.by_id.values() if one.group == group]
        capacity = max(one.token_capacity for one in members)
        left = max(0, RECORDS_OF_A_BEAM * width - sum(one.role == Role.BEAM for one in members))
        records, tokens = records + left, tokens + left * capacity
    return records, tokens


def forget_oldest(parts: Parts) -> None:
    """Drop a finished record before its time; ResourceExhausted without any."""
    oldest = next((old for old in parts.sequences.finished if not old.held_rows), None)
    if oldest is None:
        raise ResourceExhausted(
            "no room for another sequence's record, tokens or request",
            records=parts.layout.num_records,
            free_records=len(parts.sequences.unused),
            free_tokens=parts.sequences.token_arena.free_units,
        )
    parts.sequences.forget(oldest)
