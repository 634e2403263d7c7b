"""Collects what the next Outcome will say: entries of the one commit, rows to release, events, ends."""

from compute.scheduler.outcome import Ended, HandedOver, Outcome, Rejection, TokenEvent
from compute.scheduler.sequence import Sequence
from kvmanager.messages import BlockRef, Commit, CommitEntry, FinishReason, Release, SequenceRef


class Boundary:
    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.entries: list[CommitEntry] = []
        self.rows: list[SequenceRef] = []
        self.blocks: list[BlockRef] = []
        self.events: list[TokenEvent] = []
        self.rejections: list[Rejection] = []
        self.ended: list[Ended] = []
        self.handed_over: list[HandedOver] = []

    def change(
        self, sequence: Sequence, *, preempted: bool = False, finish: FinishReason = FinishReason.NONE
    ) -> None:
        """An entry that computes nothing: the sequence gives its row back, or ends, or both."""
        self.entries.append(
            CommitEntry(
                sequence=sequence.request.sequence,
                epoch=sequence.epoch,
                base_recorded=len(sequence.tokens),
                base_kv=sequence.kv_len,
                kv_len=0 if preempted else sequence.kv_len,
                preempted=preempted,
                finish=finish,
            )
        )

    def freed(self) -> Release | None:
        """What may go once no launched step names it any more; starts anew."""
        rows, blocks, self.rows, self.blocks = self.rows, self.blocks, [], []
        return Release(rows=rows, blocks=blocks) if rows or blocks else None

    def let_go(self, release: Release) -> None:
        """What a step that is done had kept."""
        self.rows.extend(release.rows)
        self.blocks.extend(release.blocks)

    def take(self, step: int) -> Outcome:
        """Everything collected, as of `step`; starts anew."""
        outcome = Outcome(
            commit=Commit(step=step, entries=self.entries) if self.entries else None,
            release=self.freed(),
            events=self.events,
            rejections=self.rejections,
            ended=self.ended,
            handed_over=self.handed_over,
        )
        self._start()
        return outcome
