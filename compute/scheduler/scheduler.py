"""The scheduler: inputs between steps, one plan a step, and what to say when it is done.

Nothing here blocks or reads a clock. Its parts: `roster` (who is where), `waiting` (whose turn), `compose` (what a step
holds), `flight` (steps on their way), `floats` (blocks in hand), `results` and `boundary` (what is said). See the
package for the order of calls.
"""

from collections.abc import Sequence as ListLike
from dataclasses import replace

from compute.plan import StepPlan, StepResult
from compute.request import Request
from compute.scheduler.compose import Batch, compose
from compute.scheduler.flight import Flight
from compute.scheduler.floats import Float
from compute.scheduler.landing import Landing
from compute.scheduler.limits import Limits
from compute.scheduler.outcome import Outcome
from compute.scheduler.progress import Progress, Waits
from compute.scheduler.rehearsal import rehearsal
from compute.scheduler.results import again_event
from compute.scheduler.roster import Roster
from compute.scheduler.sequence import Phase, Sequence
from kvmanager.errors import KvError, ResourceExhausted, Unavailable
from kvmanager.messages import (
    BlockRef,
    Commit,
    FinishReason,
    Granted,
    Numbered,
    Opened,
    OpenKind,
    Refusal,
    Refused,
    Release,
    SequenceId,
    Wait,
)


class Scheduler:
    """One worker's. `progress` may be read by others at any time."""

    def __init__(self, limits: Limits) -> None:
        self.progress = Progress()
        self._limits = limits
        self._roster = Roster()
        self._float = Float(limits.num_blocks, limits.block_size)
        self._first_chunk = min(limits.blocks_for(limits.max_num_batched_tokens), self._float.cap)
        self._waits = Waits()
        self._batch = Batch()  # the last one composed: what it lacked is asked for
        self._flight = Flight()
        self._landing = Landing(limits, self._roster, self.progress)
        self._rehearsing = True  # until the first plan
        self._draining = self._handing_over = False

    @property
    def idle(self) -> bool:
        """No live sequence."""
        return not self._roster.live

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
        else:
            roster.admit(request, self._limits.eos_ids)

    def cancel(self, sequence_id: SequenceId, reason: FinishReason) -> None:
        """Ends a sequence at this boundary; an unknown one has ended already."""
        sequence = self._roster.live.get(sequence_id)
        if sequence is None:
            return
        if sequence.phase is Phase.OPENING or sequence.settling:
            sequence.canceled = reason
        else:
            self._roster.end(sequence, reason)

    def hand_over(self) -> None:
        """Starts no step any more; at the next boundary at which nothing is on its way all sequences are given back."""
        self.drain()
        self._handing_over = True

    def resume(self) -> None:
        """Admits again, after `drain` or `hand_over`."""
        self._draining = self._handing_over = False

    def drain(self) -> None:
        """Admits nothing any more: what never had a row is rejected, the rest goes on to its end."""
        self._draining = True
        while fresh := [one for one in self._roster.waiting if not one.recorded]:  # whose followers come next
            for sequence in fresh:
                self._roster.fail(sequence, Unavailable("this worker is draining"))

    # --------------------------------------------------------------------------------- from the daemon

    def opened(self, opened: Opened) -> None:
        """The row of a sequence that was OPENING; KvError if it is not the one that we asked for."""
        sequence = self._roster.answered(opened.sequence)
        if sequence is None:
            return
        length = len(opened.token_ids or sequence.tokens)
        if opened.recorded_len != length or opened.kv_len >= length:
            raise KvError(f"a row for {opened.recorded_len} tokens was opened, asked for {length}")
        sequence.opened(opened)
        self._roster.run(sequence)
        if sequence.adopted:
            self._adopted(sequence, opened)
        if sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)

    def _adopted(self, sequence: Sequence, opened: Opened) -> None:
        """Counts what is computed a second time, and says who speaks now. Without a record it begins anew."""
        progress, left = self.progress, sequence.remaining
        if opened.kind is OpenKind.ADOPTED:
            progress.replayed += min(left, self._limits.max_num_batched_tokens)
            progress.reprefilled += opened.lost_len
        elif sequence.num_output:
            progress.reprefilled += left - 1
        if sequence.num_output:
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

    def _back_in_line(self, sequence: Sequence, now_ns: int, *, for_prefix: bool = False) -> None:
        self._roster.waiting.waited(sequence, now_ns, for_prefix=for_prefix)
        if sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)
        elif self._draining and not sequence.recorded:
            self._roster.fail(sequence, Unavailable("this worker is draining"))

    def refused(self, refused: Refused, now_ns: int) -> None:
        """It can never be opened; but for want of records, which come free when others end."""
        sequence = self._roster.answered(refused.sequence)
        if sequence is None:
            return
        if refused.code == ResourceExhausted.code and self._roster.others_recorded(sequence):
            self._back_in_line(sequence, now_ns)
            return
        self._roster.waiting.add(sequence)
        if sequence.canceled is not None:
            self._roster.end(sequence, sequence.canceled)
        else:
            self._roster.fail(sequence, KvError(refused.message, **refused.details), refused.code)

    def granted(self, granted: Granted, now_ns: int) -> None:
        """Blocks that answer our Grant."""
        self._float.granted(granted.blocks, now_ns)

    def topped_up(self, granted: Granted) -> None:
        """Blocks that came unasked, for a step that starved."""
        self._float.topped_up(granted.blocks)

    def reconcile(self, blocks: ListLike[BlockRef]) -> None:
        """The float as a daemon knows it that started anew; whom its predecessor made wait for a prefix asks again."""
        self._float.reconcile(blocks)
        self._float.retry()
        self._roster.waiting.retry()
        self._roster.waiting.wake_all()

    def revoke(self, sequence_id: SequenceId, epoch: int, now_ns: int) -> None:
        """Gives a row back at this boundary; the sequence is resumed with all its tokens."""
        sequence = self._roster.live.get(sequence_id)
        if sequence is not None and sequence.phase is Phase.RUNNING and sequence.epoch == epoch:
            self._roster.preempt(sequence, now_ns)
            self.progress.preemptions += 1

    def acked(
        self, message: Numbered, refusals: ListLike[Refusal] = (), granted: ListLike[BlockRef] = ()
    ) -> None:
        """The daemon applied one of our messages, but for the refused entries of a commit."""
        self._float.topped_up(granted)
        if isinstance(message, Release):
            self._float.left(message.blocks)
            self._roster.waiting.retry()
            self._float.retry()
        elif isinstance(message, Commit):
            self._committed(message, refusals)

    def _committed(self, message: Commit, refusals: ListLike[Refusal]) -> None:
        entries = {entry.sequence: entry for entry in message.entries} if refusals else {}
        refused = {refusal.sequence for refusal in refusals}
        for entry in message.entries:
            if entry.blocks:
                self._float.retry()
                if entry.sequence not in refused:
                    self._float.left(entry.blocks)
        for refusal in refusals:
            if refusal.sequence in entries:
                self._roster.entry_refused(entries[refusal.sequence], refusal)
        if self._roster.forking:
            for entry in message.entries:
                if entry.fork is not None:
                    self._roster.forking.pop(entry.sequence, None)

    # ------------------------------------------------------------------------------------------- steps

    def plan(self, now_ns: int) -> StepPlan | None:
        """The next step, which may be launched while others are on their way; None if nothing can run now."""
        self._rehearsing = False
        running = self._whose_turn()
        if self._flight and any(one.ahead and one.needs_last_token for one in running):
            return None
        places = self._limits.max_running - self._open_rows if self._roster.groups.following else 0
        self._batch = compose(running, self._float, self._reserve(), self._limits, places)
        if not self._batch.rows:
            self._nothing_runs(now_ns)
            return None
        for member in self._batch.forked:
            self._roster.forked(member)
        self._flight.launch(self._batch, now_ns)
        self.progress.launched(self._waits.launch(now_ns), self._waits)
        return StepPlan(self.progress.step, self._batch.rows, self._batch.copies)

    def _whose_turn(self) -> list[Sequence]:
        """All that run; a suspect has a step of its own (rule 12), and nobody once they are handed over."""
        running = self._roster.running
        suspect = next((one for one in running if one.alone), None)
        if self._handing_over or (self._flight and (suspect or self._flight.alone)):
            return []
        return running if suspect is None else [suspect]

    def _nothing_runs(self, now_ns: int) -> None:
        """It counts as waiting for blocks, unless a step on its way is what is waited for, or there is nobody."""
        if not self._roster.running:
            self._waits.forget()
        elif not self._flight:
            self._waits.begin(now_ns)

    def rehearsal(self) -> list[StepPlan]:
        """Plans to warm a runner up with, before the first step; none while the float is empty."""
        assert self.progress.step == 0, "steps have run"
        blocks = self._float.block_ids()
        return rehearsal(blocks, self._limits) if blocks else []

    def held_back(self, now_ns: int) -> None:
        """No step may be launched because too much is unacknowledged; the next one counts as waited."""
        if self._roster.running and not self._flight:
            self._waits.begin(now_ns)

    def orders(self, now_ns: int) -> list[Numbered]:
        """What to send before the step runs: for blocks first, then for rows of those whose turn it is."""
        opens: list[Numbered] = []
        while self._may_open() and (order := self._roster.open_next(now_ns)) is not None:
            opens.append(order if self._limits.prefix_caching else replace(order, no_cache=True))
        batch = self._batch
        grant = self._float.order(self._target(), batch.short, now_ns, starving=batch.starving)
        return opens if grant is None else [grant, *opens]

    def _may_open(self) -> bool:
        """A row opened now would take the blocks that a starving step is waiting for."""
        room = self._open_rows < self._limits.max_running and not self._handing_over
        return room and not self._batch.starving

    @property
    def _open_rows(self) -> int:
        return self._roster.opening + len(self._roster.running)

    def advance(self, plan: StepPlan, result: StepResult, now_ns: int) -> Outcome:
        """The oldest step on its way is done: what to commit, and what may be shown after that."""
        batch = self._flight.land(plan)
        if not self._flight:
            self._batch = Batch()
        self._landing.begin()
        parts = zip(batch.sequences, batch.rows, batch.taken, result.rows, strict=True)
        for sequence, row, taken, got in parts:
            if sequence.phase is not Phase.RUNNING or sequence.epoch != row.epoch:
                self._float.put_back(taken)  # it ended or gave its row back while this step was on its way
            elif got.error is None:
                self._landing.apply(sequence, row, taken, got, now_ns)
            else:
                self._float.put_back(taken)
                self._roster.end(sequence, FinishReason.ERROR, got.error)
        if self._roster.groups.following:
            for lead in self._roster.running:
                self._landing.end_followers(lead)
        sampled = sum(row.sample for row in batch.rows)
        self.progress.measure(plan.num_tokens, sampled, self._flight.took_ns(batch, now_ns))
        return self._outcome(batch.freed)

    def settle(self) -> Outcome:
        """A boundary without a step: what was decided since the last one. Who runs nothing holds no float."""
        roster = self._roster
        if self._handing_over and not (self._flight or roster.opening or roster.forking):
            for sequence in list(roster.live.values()):
                roster.hand_over(sequence)
        if not self._roster.running and not self._expecting() and not self._flight:
            self._roster.said.blocks.extend(self._float.all())
        if self._roster.said.entries:
            self.progress.step += 1
        return self._outcome()

    def next_tick_ns(self) -> int | None:
        """When to come back although nothing arrived: a Wait or a short Grant is tried again."""
        blocks = self._float.next_retry_ns() if self._roster.running else None
        rows = self._roster.waiting.next_retry_ns() if self._may_open() else None
        return min((time for time in (rows, blocks) if time is not None), default=None)

    # ----------------------------------------------------------------------------------------- details

    def _outcome(self, freed: ListLike[Release] = ()) -> Outcome:
        """What this boundary says. `freed`: rows and blocks that waited for the step that is done now."""
        self._flight.hold(self._roster.said)
        for release in freed:
            self._roster.said.let_go(release)
        outcome = self._roster.take(self.progress.step)
        progress, roster = self.progress, self._roster
        progress.running, progress.waiting = len(roster.running), len(roster.live) - len(roster.running)
        progress.float_blocks = len(self._float)
        return outcome

    def _decoding(self) -> int:
        return sum(sequence.remaining == 1 for sequence in self._roster.running)

    def _reserve(self) -> int:
        """Blocks that prefill leaves to decodes."""
        return self._float.reserve(self.progress.tokens_per_second, self._decoding())

    def _expecting(self) -> bool:
        """A step comes soon: the rehearsal, or that of a row on its way which was not refused for want of blocks."""
        return self._rehearsing or (self._roster.opening > 0 and not self._roster.waiting.holding)

    def _target(self) -> int:
        """Blocks to hold: nobody's while others may wait for them, a first chunk while a row is on its way."""
        running = self._roster.running
        if not running:
            return self._first_chunk if self._expecting() else 0
        pending = sum(sequence.remaining for sequence in running if sequence.remaining > 1)
        forks = sum(len(sequence.followers) for sequence in running)
        chunk = self._limits.blocks_for(min(pending, self._limits.max_num_batched_tokens))
        chunk = max(chunk, self._first_chunk) + forks
        return self._float.target(self.progress.tokens_per_second, self._decoding(), chunk)
