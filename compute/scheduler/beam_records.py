"""What a beam search says: entries of the commit for its beams, hypotheses and answers, and the answers' events."""

from collections.abc import Sequence as ListLike

from compute.scheduler.outcome import TokenEvent
from compute.scheduler.results import BY_TOKEN
from compute.scheduler.search import Hypothesis, Search
from compute.scheduler.sequence import Sequence
from kvmanager.messages import CommitEntry, FinishReason, Fork, SequenceId, SequenceRef


def grown(member: Sequence, token_ids: ListLike[int] = ()) -> CommitEntry:
    """What a row of it gave, if one did, and the token it goes on with (which it has already)."""
    computed = member.computed
    return CommitEntry(
        sequence=member.request.sequence,
        epoch=member.epoch,
        base_recorded=len(member.tokens) - len(token_ids),
        base_kv=member.kv_len if computed is None else computed.base_kv,
        token_ids=token_ids,
        kv_len=member.kv_len,
        blocks=() if computed is None else computed.taken,
        copies_done=member.take_copied(),
        score=member.score,
    )


def told(child: Sequence) -> CommitEntry:
    """A beam that begins: of its parent's KV it has the whole blocks, until its tail is copied."""
    assert child.search is not None
    assert child.parent is not None
    return CommitEntry(
        sequence=child.request.sequence,
        epoch=1,
        base_recorded=len(child.tokens) - 1,
        base_kv=child.kv_len,
        token_ids=child.tokens[-1:],
        kv_len=child.kv_len,
        fork=fork_of(child.search, child.parent, beam=True),
        score=child.score,
    )


def hypothesis(search: Search, ended: Hypothesis, parent: Sequence) -> CommitEntry:
    """The record of a hypothesis that may be among the best."""
    ended.record = search.next_id()
    return without_row(search, ended, ended.record, parent.ref, len(ended.tokens) - 1, beam=True)


def dropped(ended: Hypothesis) -> CommitEntry:
    """Nobody needs its record any more."""
    assert ended.record is not None
    length = len(ended.tokens)
    return CommitEntry(
        sequence=ended.record,
        epoch=1,
        base_recorded=length,
        base_kv=length - 1,
        kv_len=length - 1,
        finish=FinishReason.CANCELLED,
    )


def closed(refused: CommitEntry) -> CommitEntry:
    """Ends a record where an entry that was refused began."""
    return CommitEntry(
        sequence=refused.sequence,
        epoch=refused.epoch,
        base_recorded=refused.base_recorded,
        base_kv=refused.base_kv,
        kv_len=refused.base_kv,
        finish=FinishReason.ERROR,
    )


def answer(search: Search, best: ListLike[Hypothesis]) -> tuple[list[CommitEntry], list[TokenEvent]]:
    """Records and events of the indexes; the request's own record, index 0, is the last one."""
    indexed = list(zip(search.indexes, best, strict=True))
    others = [
        without_row(search, one, index, search.request.ref, search.request.prompt_len, number=number)
        for number, (index, one) in enumerate(indexed)
        if number
    ]
    events = [event(search, index, one, number) for number, (index, one) in enumerate(indexed)]
    return [*others, own_answer(search.request, best[0])], events


def own_answer(request: Sequence, best: Hypothesis) -> CommitEntry:
    computed = request.computed
    return CommitEntry(
        sequence=request.request.sequence,
        epoch=request.epoch,
        base_recorded=request.prompt_len,
        base_kv=request.kv_len if computed is None else computed.base_kv,
        token_ids=best.tokens[request.prompt_len :],
        kv_len=request.kv_len,
        blocks=() if computed is None else computed.taken,
        copies_done=request.take_copied(),
        finish=best.finish,
        stop_token_id=stop_token(best),
        score=best.score,
    )


def without_row(
    search: Search,
    ended: Hypothesis,
    name: SequenceId,
    parent: SequenceRef,
    base: int,
    *,
    beam: bool = False,
    number: int = 0,
) -> CommitEntry:
    """A record that is made finished: the parent's first `base` tokens and the hypothesis' others."""
    return CommitEntry(
        sequence=name,
        epoch=1,
        base_recorded=base,
        base_kv=base,
        token_ids=ended.tokens[base:],
        kv_len=base,
        finish=ended.finish,
        stop_token_id=stop_token(ended),
        fork=fork_of(search, parent, beam=beam, number=number),
        score=ended.total if beam else ended.score,
    )


def fork_of(search: Search, parent: SequenceRef, *, beam: bool, number: int = 0) -> Fork:
    """The request's bytes stay with the search's own record."""
    request = search.request.request
    return Fork(
        parent=parent.sequence,
        parent_epoch=parent.epoch,
        group=request.group,
        index=number,
        request=b"",
        max_tokens=request.stop.max_tokens,
        priority=request.priority,
        arrival_ns=request.arrival_ns,
        tenant=request.tenant,
        request_id=request.request_id,
        beam=beam,
        result=not beam,
    )


def stop_token(ended: Hypothesis) -> int:
    return ended.tokens[-1] if ended.finish in BY_TOKEN else 0


def event(search: Search, index: SequenceId, ended: Hypothesis, number: int) -> TokenEvent:
    """An answer, whole. The prompt was computed for the first one. Log-probabilities of all tokens or of none: what
    another worker chose came without."""
    request = search.request
    return TokenEvent(
        sequence=index,
        client=request.request.client,
        epoch=request.epoch,
        first_position=request.prompt_len,
        token_ids=ended.tokens[request.prompt_len :],
        logprobs=ended.logprobs if len(ended.logprobs) == len(ended.tokens) - request.prompt_len else (),
        prompt_logprobs=() if number else request.prompt_logprobs,
        finish=ended.finish,
        stop_token_id=ended.tokens[-1] if ended.finish in BY_TOKEN else None,
        cached_tokens=request.prompt_len if number else request.cached_len,
        queue_seconds=request.queue_seconds,
        stalled_seconds=request.stalled_ns / 1e9,
        score=ended.score,
    )


def index_ended(search: Search, index: SequenceId, finish: FinishReason) -> TokenEvent:
    """The end of an index without an answer."""
    request = search.request
    return TokenEvent(
        sequence=index,
        client=request.request.client,
        epoch=max(request.epoch, 1),
        first_position=request.prompt_len,
        finish=finish,
        cached_tokens=request.cached_len,
        queue_seconds=request.queue_seconds,
        stalled_seconds=request.stalled_ns / 1e9,
    )
