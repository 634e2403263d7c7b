"""What happens to requests between steps: they come, are canceled, get rows, wait for them, or give them back.

Says whether a sequence is one of its own or part of a beam search, and hands it to the roster or to `searches`.
"""

from compute.request import Request
from compute.scheduler.limits import Limits
from compute.scheduler.progress import Progress
from compute.scheduler.results import again_event
from compute.scheduler.roster import Roster
from compute.scheduler.searches import Searches
from compute.scheduler.sequence import Phase, Sequence
from kvmanager.errors import Invalid, KvError, ResourceExhausted, Unavailable
from kvmanager.messages import (
    Commit,
    CommitEntry,
    FinishReason,
    Opened,
    OpenKind,
    Refusal,
    Refused,
    SequenceId,
    Wait,
)


class Door:
    """One worker's."""

    def __init__(self, limits: Limits, roster: Roster, searches: Searches, progress: Progress) -> None:
        self._limits, self._roster, self._searches, self._progress = limits, roster, searches, progress
        self._draining = False

    # ------------------------------------------------------------------------------- from the gateways

    def submit(self, request: Request) -> None:
        """A new sequence. Of one that is live already, its last token is said again: somebody else listens."""
        roster = self._roster
        known = roster.live.get(request.sequence)
        if known is not None:
            if known.recorded and known.num_output:
                roster.said.events.append(again_event(known))
            return
        if self._draining:
            roster.reject(request, Unavailable("this worker is draining"))
        elif (waiting := len(roster.waiting) + roster.groups.following) >= self._limits.max_waiting:
            roster.reject(request, ResourceExhausted(f"{waiting} requests are waiting already"))
        elif request.beams is not None and request.beams.width > self._limits.max_running:
            roster.reject(request, too_wide(request.beams.width, self._limits.max_running))
        else:
            roster.admit(request, self._limits.eos_ids)

    def cancel(self, sequence_id: SequenceId, reason: FinishReason) -> None:
        """Ends a sequence at this boundary; an unknown one has ended already."""
        search = self._searches.find(sequence_id)
        sequence = self._roster.live.get(sequence_id)
        if search is not None:
            self._searches.ends.end(search, reason)
        elif sequence is None:
            return
        elif sequence.phase is Phase.OPENING or sequence.settling:
            sequence.canceled = reason
        else:
            self._roster.end(sequence, reason)

    def drain(self) -> None:
        """Admits nothing any more: what never had a row is rejected, the rest goes on to its end."""
        self._draining = True
        while fresh := [one for one in self._roster.waiting if not one.recorded]:  # whose followers come next
            for sequence in fresh:
                self._fail(sequence, Unavailable("this worker is draining"))

    def resume(self) -> None:
        """Admits again."""
        self._draining = False

    def hand_over(self) -> None:
        """Gives every live sequence back: nothing of it is on its way."""
        for search in list(self._roster.searches):
            self._searches.ends.hand_over(search)
        for sequence in list(self._roster.live.values()):
            self._roster.hand_over(sequence)

    def _fail(self, sequence: Sequence, error: KvError, code: int | None = None) -> None:
        if sequence.search is None:
            self._roster.fail(sequence, error, code)
        else:
            self._searches.ends.fail(sequence.search, error, code)

    # --------------------------------------------------------------------------------- from the daemon

    def opened(self, opened: Opened) -> None:
        """The row of a sequence that was OPENING; KvError if it is not the one that we asked for."""
        sequence = self._roster.answered(opened.sequence)
        if sequence is None:
            return
        if opened.members and sequence.search is not None:
            self._searches.take_over(sequence.search, opened)
            return
        length = len(opened.token_ids or sequence.tokens)
        if opened.recorded_len != length or opened.kv_len >= length:
            raise KvError(f"a row for {opened.recorded_len} tokens was opened, asked for {length}")
        sequence.opened(opened)
        self._roster.run(sequence)
        if sequence.adopted:
            self._adopted(sequence, opened)
        if sequence.search is not None:
            self._searches.ends.answered(sequence.search)
        elif sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)

    def _adopted(self, sequence: Sequence, opened: Opened) -> None:
        """Counts what is computed a second time, and says who speaks now. Without a record it begins anew."""
        progress, left = self._progress, sequence.remaining
        if opened.kind is OpenKind.ADOPTED:
            progress.replayed += min(left, self._limits.max_num_batched_tokens)
            progress.reprefilled += opened.lost_len
        elif sequence.num_output:
            progress.reprefilled += left - 1
        if sequence.num_output and sequence.search is None:
            self._roster.said.events.append(again_event(sequence))

    def wait(self, wait: Wait, now_ns: int) -> None:
        """No room yet; or another is computing what this one needs, and Retry says when to ask again."""
        sequence = self._roster.answered(wait.sequence)
        if sequence is not None:
            self._back_in_line(sequence, now_ns, for_prefix=wait.for_prefix)

    def retry(self, sequence_id: SequenceId) -> None:
        """The wait for another's prefix is over; a sequence that does not wait for one is left as it is."""
        sequence = self._roster.live.get(sequence_id)
        if sequence is not None:
            self._roster.waiting.wake(sequence)

    def _back_in_line(
        self, sequence: Sequence, now_ns: int, *, for_records: bool = False, for_prefix: bool = False
    ) -> None:
        self._roster.waiting.waited(sequence, now_ns, for_records=for_records, for_prefix=for_prefix)
        if sequence.search is not None and self._searches.waits(sequence.search, now_ns, for_prefix):
            return
        if sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)
        elif self._draining and not sequence.recorded:
            self._fail(sequence, Unavailable("this worker is draining"))

    def refused(self, refused: Refused, now_ns: int) -> None:
        """It can never be opened; but for want of records, which come free when others end."""
        sequence = self._roster.answered(refused.sequence)
        if sequence is None:
            return
        if refused.code == ResourceExhausted.code and self._roster.others_recorded(sequence):
            self._back_in_line(sequence, now_ns, for_records=True)
            return
        self._roster.waiting.add(sequence)
        if sequence.search is not None and self._searches.ends.answered(sequence.search):
            return
        if sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)
        else:
            self._fail(sequence, KvError(refused.message, **refused.details), refused.code)

    def revoke(self, sequence_id: SequenceId, epoch: int, now_ns: int) -> None:
        """Gives a row back at this boundary; the sequence is resumed with all its tokens."""
        sequence = self._roster.live.get(sequence_id)
        if sequence is not None and sequence.phase is Phase.RUNNING and sequence.epoch == epoch:
            if sequence.search is None:
                self._roster.preempt(sequence, now_ns)
            else:
                self._searches.preempt(sequence.search, now_ns)
            self._progress.preemptions += 1

    # ------------------------------------------------------------------------------------------- steps

    def entries_refused(self, message: Commit, refusals: dict[SequenceId, Refusal]) -> None:
        """Entries that the daemon did not take: each for itself, or those of a search together."""
        entries = [entry for entry in message.entries if entry.sequence in refusals]
        if any(entry.fork is not None and (entry.fork.beam or entry.fork.result) for entry in entries):
            together = [entry for entry in entries if not self._plain(entry)]
            entries = [entry for entry in entries if self._plain(entry)]
            self._searches.ends.refused(together, refusals)
        for entry in entries:
            self._roster.entry_refused(entry, refusals[entry.sequence])

    def _plain(self, entry: CommitEntry) -> bool:
        """Whether it is about a sequence that is no search's."""
        if entry.fork is not None:
            return not (entry.fork.beam or entry.fork.result)
        sequence = self._roster.live.get(entry.sequence)
        return sequence is not None and sequence.search is None

    def row_failed(self, sequence: Sequence, error: str) -> None:
        """Ends its request, and nobody else's."""
        if sequence.search is None:
            self._roster.end(sequence, FinishReason.ERROR, error)
        else:
            self._searches.ends.end(sequence.search, FinishReason.ERROR, error)


def too_wide(width: int, most: int) -> Invalid:
    return Invalid(
        f"sampling.beam_width {width} is more than the {most} sequences that this worker runs at once",
        field="sampling.beam_width",
        most=most,
    )
