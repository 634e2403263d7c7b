"""From what one row gave to what is said about it: the entry of the commit and the event for the gateway."""

from compute.plan import RowResult, StepRow
from compute.scheduler.outcome import TokenEvent
from compute.scheduler.sequence import Sequence
from kvmanager.messages import BlockRef, CommitEntry, FinishReason

BY_TOKEN = (FinishReason.STOP, FinishReason.EOS)


def commit_entry(
    row: StepRow, base_recorded: int, taken: list[BlockRef], got: RowResult, finish: FinishReason
) -> CommitEntry:
    """`taken`: the blocks that this row took from the float."""
    token_id = got.token_id if row.sample else None
    return CommitEntry(
        sequence=row.sequence,
        epoch=row.epoch,
        base_recorded=base_recorded,
        base_kv=row.start,
        token_ids=() if token_id is None else (token_id,),
        kv_len=row.start + len(row.token_ids),
        blocks=taken,
        finish=finish,
        stop_token_id=token_id if token_id is not None and finish in BY_TOKEN else 0,
    )


def token_event(sequence: Sequence, got: RowResult, finish: FinishReason) -> TokenEvent:
    """The token just appended to `sequence`. The prompt's log-probabilities leave with the first one."""
    token_id = sequence.tokens[-1]
    return TokenEvent(
        sequence=sequence.request.sequence,
        client=sequence.request.client,
        epoch=sequence.epoch,
        first_position=len(sequence.tokens) - 1,
        token_ids=(token_id,),
        logprobs=() if got.logprob is None else (got.logprob,),
        prompt_logprobs=sequence.prompt_logprobs,
        finish=finish,
        stop_token_id=token_id if finish in BY_TOKEN else None,
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
