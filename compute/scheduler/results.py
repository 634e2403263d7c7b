"""From what one row gave to what is said about it: the entry of the commit and the event for the gateway."""

from compute.plan import RowResult, StepRow
from compute.scheduler.outcome import TokenEvent
from compute.scheduler.sequence import Sequence
from kvmanager.messages import BlockRef, CommitEntry, FinishReason, Fork

BY_TOKEN = (FinishReason.STOP, FinishReason.EOS)


def commit_entry(  # noqa: PLR0917 - what a row gave
    sequence: Sequence,
    row: StepRow,
    base_recorded: int,
    taken: list[BlockRef],
    got: RowResult,
    finish: FinishReason,
) -> CommitEntry:
    """`taken`: the blocks that this row took from the float. A fork is told with its first row and the token before."""
    token_id = got.token_id if row.sample else None
    return CommitEntry(
        sequence=row.sequence,
        epoch=row.epoch,
        base_recorded=base_recorded,
        base_kv=row.start,
        token_ids=() if token_id is None else sequence.tokens[base_recorded:],
        kv_len=row.start + len(row.token_ids),
        blocks=taken,
        finish=finish,
        stop_token_id=token_id if token_id is not None and finish in BY_TOKEN else 0,
        copies_done=sequence.take_copied(),
        fork=fork_of(sequence) if sequence.drawn is not None else None,
    )


def ended_fork(member: Sequence, lead: Sequence) -> CommitEntry:
    """A follower whose first token is its last: it never has a row."""
    return CommitEntry(
        sequence=member.request.sequence,
        epoch=1,
        base_recorded=lead.prompt_len,
        base_kv=lead.prompt_len,
        token_ids=member.tokens[member.prompt_len :],
        kv_len=lead.prompt_len,
        finish=member.last,
        stop_token_id=member.tokens[-1] if member.last in BY_TOKEN else 0,
        fork=fork_of(member),
    )


def fork_of(sequence: Sequence) -> Fork:
    assert sequence.parent is not None
    request = sequence.request
    return Fork(
        parent=sequence.parent.sequence,
        parent_epoch=sequence.parent.epoch,
        group=request.group,
        index=request.index,
        request=request.record,
        max_tokens=request.stop.max_tokens,
        priority=request.priority,
        arrival_ns=request.arrival_ns,
        tenant=request.tenant,
        request_id=request.request_id,
    )


def token_event(sequence: Sequence, got: RowResult, finish: FinishReason) -> TokenEvent:
    """The token just appended to `sequence`; a fork's first one leaves with it. The prompt's log-probabilities leave
    with the first."""
    token_id, drawn = sequence.tokens[-1], sequence.drawn
    results = (got,) if drawn is None or drawn is got else (drawn, got)
    return TokenEvent(
        sequence=sequence.request.sequence,
        client=sequence.request.client,
        epoch=max(sequence.epoch, 1),
        first_position=len(sequence.tokens) - len(results),
        token_ids=sequence.tokens[-len(results) :],
        logprobs=[one.logprob for one in results if one.logprob is not None],
        prompt_logprobs=sequence.prompt_logprobs,
        finish=finish,
        stop_token_id=token_id if finish in BY_TOKEN else None,
        cached_tokens=sequence.cached_len,
        queue_seconds=sequence.queue_seconds,
        stalled_seconds=sequence.stalled_ns / 1e9,
    )


def again_event(sequence: Sequence) -> TokenEvent:
    """Its last recorded token once more: whoever listens learns who speaks now, and how much is recorded."""
    return TokenEvent(
        sequence=sequence.request.sequence,
        client=sequence.request.client,
        epoch=max(sequence.epoch, 1),
        first_position=len(sequence.tokens) - 1,
        token_ids=sequence.tokens[-1:],
        cached_tokens=sequence.cached_len,
        queue_seconds=sequence.queue_seconds,
        stalled_seconds=sequence.stalled_ns / 1e9,
    )


def last_event(sequence: Sequence, finish: FinishReason) -> TokenEvent:
    """The end of a sequence without a token."""
    return TokenEvent(
        sequence=sequence.request.sequence,
        client=sequence.request.client,
        epoch=sequence.epoch,
        first_position=len(sequence.tokens),
        finish=finish,
        cached_tokens=sequence.cached_len,
        queue_seconds=sequence.queue_seconds,
        stalled_seconds=sequence.stalled_ns / 1e9,
    )
