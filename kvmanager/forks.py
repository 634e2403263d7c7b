"""A fork: a new sequence that begins with another's tokens and blocks, told with its first commit.

    parent   0 ...... whole blocks below base_kv ...... base_kv .... base_recorded ......
    fork     [ the same blocks, one reference more ][ `blocks` of the entry ]  its own tokens
                                                    ^ fresh: the worker copied the begun tail's slots into the first

Nobody ever shares a tail: what a fork may write comes from its session's float, like any other block.
"""

from array import array
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from typing import NamedTuple, Self

from kvmanager.admission import capacity_of, make_room, validate_terms
from kvmanager.blocks import SEALED
from kvmanager.errors import Conflict, Invalid, NotFound, ResourceExhausted
from kvmanager.errors import Fenced as NotOwned
from kvmanager.layout import within
from kvmanager.messages import CommitEntry, FinishReason, Fork
from kvmanager.parts import Parts
from kvmanager.prefix import Tip
from kvmanager.sequences import Sequence, SequenceState
from kvmanager.sessions import Session

MAX_FORK_BYTES = (
    128 * 1024
)  # of requests in one commit: half of what an operation's redo log has beside its records


@dataclass(slots=True)
class Room:
    """What the forks of one commit may still store: an operation must fit the redo area."""

    tokens: int
    request_bytes: int

    @classmethod
    def of(cls, parts: Parts, entries: ListOf[CommitEntry]) -> Self:
        own = sum(len(entry.token_ids) for entry in entries)
        return cls(parts.layout.arena_tokens - own, MAX_FORK_BYTES)

    def take(self, tokens: int, request_bytes: int) -> None:
        """ResourceExhausted when this commit has no room for another fork of this size."""
        if tokens > self.tokens or request_bytes > self.request_bytes:
            raise ResourceExhausted(
                "no room for another fork in this commit",
                tokens=self.tokens,
                request_bytes=self.request_bytes,
            )
        self.tokens, self.request_bytes = self.tokens - tokens, self.request_bytes - request_bytes


class Child(NamedTuple):
    """A fork that is judged and not stored yet."""

    sequence: Sequence
    shared: list[int]  # sealed blocks that its row begins with
    request: bytes


def without_row(entry: CommitEntry) -> bool:
    """A fork that ended before it wrote a slot: its record is made finished."""
    return bool(entry.finish) and not entry.blocks and entry.kv_len == entry.base_kv


def child_of(parts: Parts, session: Session, entry: CommitEntry, fork: Fork, now_ns: int) -> Child:
    """The new sequence as it stands before its entry. Nothing is changed."""
    validate_terms(parts, fork)
    within("sequence bytes", len(entry.sequence), 16, 16)
    within("epoch", entry.epoch, 1, 1)
    if entry.sequence in parts.sequences.by_id:
        raise Conflict("the sequence has a record already")
    if entry.preempted:
        raise Invalid("a fork's first entry cannot be preempted")
    parent = parent_of(parts, session, entry, fork)
    shared = [] if without_row(entry) else shared_blocks(parts, parent, entry.base_kv, fork.parent_epoch)
    sequence = Sequence(
        id=entry.sequence,
        group=fork.group,
        index=fork.index,
        tenant=parent.tenant,
        request_id=fork.request_id,
        request_bytes=len(fork.request),
        max_tokens=fork.max_tokens,
        priority=fork.priority,
        arrival_ns=fork.arrival_ns,
        opened_ns=now_ns,
        bypass_prefix=False,
        private=parent.private,
        prompt_len=parent.prompt_len,
        tokens=parent.tokens[: entry.base_recorded],
        owner=session.holder,
        kv_len=entry.base_kv,
        cached_len=entry.base_kv,
        token_capacity=capacity_of(parts, parent.prompt_len, fork.max_tokens),
        target_blocks=len(shared),
        tip=tip_of(parts, parent, shared, fork.parent_epoch),
    )
    return Child(sequence, shared, fork.request)


def parent_of(parts: Parts, session: Session, entry: CommitEntry, fork: Fork) -> Sequence:
    """The sequence forked from, if the fork may begin with what the entry's bases say."""
    parent = parts.sequences.by_id.get(fork.parent)
    if parent is None:
        raise NotFound("unknown parent")
    if parent.owner != session.holder:
        raise NotOwned("this worker does not own the parent")
    if parent.tenant != fork.tenant:
        raise Invalid("a fork has its parent's tenant", field="tenant")
    within("base_recorded", entry.base_recorded, parent.prompt_len, parent.recorded_len)
    within("base_kv", entry.base_kv, 0, entry.base_recorded)
    return parent


def shared_blocks(parts: Parts, parent: Sequence, base_kv: int, epoch: int) -> list[int]:
    """The parent's blocks wholly below `base_kv`; a row that waits for its Release has them still."""
    running = parent.state == SequenceState.OPEN and parent.epoch == epoch
    row = parent.row if running else parent.held_rows.get(epoch)
    if row is None:
        raise Conflict(f"the parent's row of epoch {epoch} is gone")
    count = base_kv // parts.block_size
    blocks = parts.rows.blocks[row][:count]
    if len(blocks) < count or any(parts.blocks.state[block] != SEALED for block in blocks):
        raise Conflict(f"base_kv {base_kv} is over what the parent has committed")
    return blocks


def tip_of(parts: Parts, parent: Sequence, shared: list[int], epoch: int) -> Tip:
    """The parent's own, where they part at its last sealed block: it knows the indexed twin of a private block."""
    if shared and parent.epoch == epoch and parent.tip.depth == len(shared):
        return parent.tip
    return parts.prefix.tip(parent.tenant, shared, private=parent.private)


def keep(parts: Parts, child: Child) -> None:
    """Store the record and open its row; `put` or the like follows. ResourceExhausted: nothing is kept."""
    sequence = child.sequence
    make_room(parts, sequence, child.request, sequence.token_capacity)
    for block in child.shared:
        parts.blocks.share(block)
    sequence.row = parts.rows.open(sequence.slot, sequence.epoch, child.shared)
    parts.sequences.put(sequence)


def keep_finished(parts: Parts, child: Child, entry: CommitEntry, now_ns: int) -> None:
    """Store a record that has all its tokens and no row."""
    sequence = child.sequence
    sequence.tokens.extend(array("I", entry.token_ids))
    sequence.state, sequence.finish = SequenceState.FINISHED, FinishReason(entry.finish)
    sequence.stop_token_id, sequence.finished_ns = entry.stop_token_id, now_ns
    make_room(parts, sequence, child.request, sequence.token_capacity)
