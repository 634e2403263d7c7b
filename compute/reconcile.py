"""After a re-attach: what became of messages that the former daemon applied and whose answers are lost. Pure.

The metadata holds every operation whole, so the daemon's record of what this worker holds answers for it: an entry of
a commit was applied if its sequence stands where the entry put it.
"""

from collections.abc import Container, Iterable, Mapping

from kvmanager.errors import Fenced
from kvmanager.messages import (
    Acked,
    Commit,
    CommitEntry,
    Holding,
    Holdings,
    Numbered,
    Refusal,
    SequenceId,
)
from kvmanager.messages import Fenced as FencedMessage


def answer(message: Numbered, held: Mapping[SequenceId, Holding], given: Container[SequenceId] = ()) -> Acked:
    """The acknowledgement that was lost, without what it granted: `Holdings.blocks` has that. `given`: sequences that
    a later message gave up, so that they are another's now."""
    return Acked(refusals=list(refusals(message, held, given)) if isinstance(message, Commit) else ())


def given_up(messages: Iterable[Numbered]) -> set[SequenceId]:
    """Sequences that are not this worker's any more by these messages, all of them applied."""
    return {message.sequence for message in messages if isinstance(message, FencedMessage)}


def refusals(
    commit: Commit, held: Mapping[SequenceId, Holding], given: Container[SequenceId]
) -> Iterable[Refusal]:
    for entry in commit.entries:
        if entry.sequence not in given and not applied(entry, held.get(entry.sequence)):
            yield Refusal(
                entry.sequence, entry.epoch, Fenced.code, "refused before the KV manager started anew"
            )


def applied(entry: CommitEntry, holding: Holding | None) -> bool:
    """A record that is gone was finished and forgotten; that of a fork was never made, and the fork begins again."""
    if holding is None:
        return bool(entry.finish) and entry.fork is None
    recorded = entry.base_recorded + len(entry.token_ids)
    return holding.epoch >= entry.epoch and holding.recorded_len >= recorded


def by_sequence(holdings: Holdings) -> dict[SequenceId, Holding]:
    return {holding.sequence: holding for holding in holdings.sequences}
