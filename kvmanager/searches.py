"""A beam search's part of a commit is applied whole or not at all: its records always show one state of the search.

    the search's record   the prompt, then parked without a row; at the end the best hypothesis
    beams                 what it runs: open, or preempted; each with its log-probability
    hypotheses            beams that ended by themselves: finished records without a row, kept until they are dropped

What can fail in an honest worker's commit is the room for new records. It is made sure of before the first entry.
"""

from collections.abc import Sequence as ListOf

from kvmanager.forks import Room, without_row
from kvmanager.messages import CommitEntry
from kvmanager.parts import Parts
from kvmanager.room import capacity_of, forget_oldest
from kvmanager.sequences import Role


def in_groups(parts: Parts, entries: ListOf[CommitEntry]) -> list[list[CommitEntry]]:
    """The entries of each search, in their order, then every other entry for itself."""
    searches: dict[bytes, list[CommitEntry]] = {}
    others = []
    for entry in entries:
        group = group_of(parts, entry) if parts.sequences.searches else None
        if group in parts.sequences.searches:
            searches.setdefault(group, []).append(entry)
        else:
            others.append([entry])
    return [*searches.values(), *others]


def group_of(parts: Parts, entry: CommitEntry) -> bytes:
    """The search that an entry is part of; nothing if it is part of none."""
    if entry.fork is not None:
        return entry.fork.group
    record = parts.sequences.by_id.get(entry.sequence)
    return record.group if record is not None and record.role != Role.PLAIN else b""


def reserve(parts: Parts, entries: ListOf[CommitEntry], room: Room) -> None:
    """Make sure that all forks of a search find room; ResourceExhausted otherwise. Finished records give way."""
    forks = [entry for entry in entries if entry.fork is not None]
    if not forks:
        return
    room.check(sum(entry.base_recorded for entry in forks))
    rows = sum(not without_row(entry) for entry in forks)
    capacities = [capacity_for(parts, entry) for entry in forks]
    while not fits(parts, rows, capacities):
        forget_oldest(parts)


def capacity_for(parts: Parts, entry: CommitEntry) -> int:
    """Tokens that a fork's record takes; none if the fork will be refused for another reason."""
    assert entry.fork is not None
    parent = parts.sequences.by_id.get(entry.fork.parent)
    if parent is None:
        return 0
    whole = entry.base_recorded + len(entry.token_ids)
    ended = entry.fork.beam and without_row(entry)
    return whole if ended else capacity_of(parts, parent.prompt_len, entry.fork.max_tokens)


def fits(parts: Parts, rows: int, capacities: ListOf[int]) -> bool:
    """Whether the next forks of these sizes would all be stored."""
    table = parts.sequences
    if len(parts.rows.unused) < rows or len(table.unused) < len(capacities):
        return False
    taken = [(table.token_arena.take(capacity), capacity) for capacity in capacities]
    for offset, capacity in taken:
        if offset is not None:
            table.token_arena.give(offset, capacity)
    return all(offset is not None for offset, _ in taken)
