"""After a re-attach: what became of messages that the former daemon applied and whose answers are lost. Pure.

The metadata holds every operation whole, so the daemon's record of what this worker holds answers for it: an entry of
a commit was applied if its sequence stands where the entry put it.
"""

from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType

from kvmanager.errors import Fenced
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    Holding,
    Holdings,
    Numbered,
    Refusal,
    SequenceId,
)
from kvmanager.messages import Fenced as FencedMessage


def answer(
    message: Numbered,
    held: Mapping[SequenceId, Holding],
    given: Container[SequenceId] = (),
    granted: Container[BlockRef] = (),
) -> Acked:
    """The acknowledgement that was lost, without what it granted. `given`: sequences that a later message gave up, so
    that they are another's now; `granted`: `Holdings.blocks`, the float as it is."""
    if not isinstance(message, Commit):
        return Acked()
    return Acked(refusals=list(refusals(message, held, given, granted)))


def given_up(
    messages: Iterable[Numbered], held: Mapping[SequenceId, Holding] = MappingProxyType({})
) -> set[SequenceId]:
    """Sequences that are not this worker's any more by these messages, all of them applied: given to another, or beams
    that began and ended meanwhile, whose records are gone."""
    given = set()
    for message in messages:
        if isinstance(message, FencedMessage):
            given.add(message.sequence)
        elif isinstance(message, Commit):
            given |= {one.sequence for one in message.entries if ends(one) and one.sequence not in held}
    return given


def ends(entry: CommitEntry) -> bool:
    """It closes a record that there was before."""
    return bool(entry.finish) and entry.fork is None


def refusals(
    commit: Commit,
    held: Mapping[SequenceId, Holding],
    given: Container[SequenceId],
    granted: Container[BlockRef],
) -> Iterable[Refusal]:
    """A block that is still in the float, in its generation, was taken by no entry, whoever has the sequence now."""
    for entry in commit.entries:
        gone = entry.sequence in given or applied(entry, held.get(entry.sequence))
        if not gone or any(block in granted for block in entry.blocks):
            yield Refusal(
                entry.sequence, entry.epoch, Fenced.code, "refused before the KV manager started anew"
            )


def applied(entry: CommitEntry, holding: Holding | None) -> bool:
    """A record that is gone was finished and forgotten; that of a fork was never made, and the fork begins again."""
    if holding is None:
        return ends(entry)
    recorded = entry.base_recorded + len(entry.token_ids)
    return holding.epoch >= entry.epoch and holding.recorded_len >= recorded


def by_sequence(holdings: Holdings) -> dict[SequenceId, Holding]:
    return {holding.sequence: holding for holding in holdings.sequences}
