"""What a row of a step that is done gave: its entry, its event, perhaps its end, and followers' first tokens."""

from collections.abc import Sequence as ListLike
from typing import Final

from compute.plan import RowResult, StepRow
from compute.scheduler.limits import Limits
from compute.scheduler.progress import Progress
from compute.scheduler.results import commit_entry, ended_fork, token_event
from compute.scheduler.roster import Roster
from compute.scheduler.sequence import Sequence
from kvmanager.messages import BlockRef, FinishReason

MAX_ENDED_BYTES: Final = (
    64 * 1024
)  # of the requests of followers that end at one boundary; the rest at the next


class Landing:
    """One worker's."""

    def __init__(self, limits: Limits, roster: Roster, progress: Progress) -> None:
        self._limits, self._roster, self._progress = limits, roster, progress
        self._most_ended = max(1, limits.max_num_seqs // 2)  # forks count more than once in a commit
        self._ended = self._ended_bytes = 0

    def begin(self) -> None:
        """A step has landed."""
        self._ended = self._ended_bytes = 0

    def apply(
        self, sequence: Sequence, row: StepRow, taken: list[BlockRef], got: RowResult, now_ns: int
    ) -> None:
        """Records what one row gave."""
        said, first = self._roster.said, sequence.drawn
        base_recorded = len(sequence.tokens) - (first is not None)
        sequence.kv_len, sequence.alone = row.start + len(row.token_ids), False
        sequence.prompt_logprobs.extend(got.prompt_logprobs)
        finish = FinishReason.NONE
        if row.sample:
            assert got.token_id is not None, "a sampled row without a token"
            sequence.ahead -= 1
            if sequence.num_output == 0:
                self._progress.prompt_tokens += sequence.prompt_len
            sequence.append(got.token_id, now_ns)
            finish = self._finish(sequence)
            said.events.append(token_event(sequence, got, finish))
            sequence.prompt_logprobs = []  # they left with the first token
        said.entries.append(commit_entry(sequence, row, base_recorded, taken, got, finish))
        if first is not None:
            self._roster.told(sequence)
        if row.forks:
            self._draw(sequence, got.forks, now_ns)
        if finish:
            self._roster.finished(sequence, finish)

    def _finish(self, sequence: Sequence) -> FinishReason:
        return sequence.finish_by(sequence.tokens[-1], self._limits.eos_ids, self._limits.max_model_len)

    def _draw(self, lead: Sequence, results: ListLike[RowResult], now_ns: int) -> None:
        """Each follower's first token. What cannot be drawn ends it."""
        members, lead.drawing = lead.drawing, []
        for member, got in zip(members, results, strict=True):
            if member.lead is not lead:
                continue  # it ended while the step was on its way
            if got.error is not None:
                self._roster.end(member, FinishReason.ERROR, got.error)
                continue
            member.draw(got, now_ns)
            member.last = self._finish(member)
            self._progress.generation_tokens += 1
        self.end_followers(lead)

    def end_followers(self, lead: Sequence) -> None:
        """Tells the end of those whose first token is their last: no step waits for them."""
        for member in [one for one in lead.followers if one.last]:
            size = len(member.request.record)
            if self._ended == self._most_ended or self._ended_bytes + size > MAX_ENDED_BYTES:
                return
            self._ended, self._ended_bytes = self._ended + 1, self._ended_bytes + size
            assert member.drawn is not None
            self._roster.said.entries.append(ended_fork(member, lead))
            self._roster.said.events.append(token_event(member, member.drawn, member.last))
            self._roster.finished_follower(member)
