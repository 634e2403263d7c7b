"""Every live sequence, in exactly one of three places, and the one way out of them.

    submit ──> WAITING ──OpenOrAdopt──> OPENING ──Opened──> RUNNING ──> finished
                  ^                        │ Wait              │
                  └────────────────────────┴───────────────────┘ Revoke: preempted, resumed with all its tokens

Whoever leaves does so with exactly one terminal event or rejection, and with its record closed if the daemon has one.
"""

from bisect import insort
from operator import attrgetter

from compute.request import Request
from compute.scheduler.boundary import Boundary
from compute.scheduler.groups import Groups
from compute.scheduler.outcome import HandedOver, Outcome, Rejection
from compute.scheduler.results import last_event
from compute.scheduler.sequence import Phase, Sequence
from compute.scheduler.waiting import Waiting
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import CommitEntry, FinishReason, OpenOrAdopt, Refusal, SequenceId

_key = attrgetter("key")


class Roster:
    def __init__(self) -> None:
        self.live: dict[SequenceId, Sequence] = {}
        self.waiting = Waiting()
        self.opening = 0
        self.running: list[Sequence] = []  # in order (priority, arrival)
        self.groups = Groups()
        self.forking: dict[SequenceId, Sequence] = {}  # told to the daemon, which has not answered yet
        self.said = Boundary()
        self._serial = 0

    # -------------------------------------------------------------------------------------- places

    def admit(self, request: Request, eos_ids: frozenset[int]) -> None:
        self._serial += 1
        sequence = Sequence(request, self._serial, eos_ids)
        self.live[request.sequence] = sequence
        if not self.groups.join(sequence):
            self.waiting.add(sequence)

    def open_next(self, now_ns: int) -> OpenOrAdopt | None:
        """Asks for the row of the sequence whose turn it is."""
        sequence = self.waiting.next(now_ns)
        if sequence is None:
            return None
        self.waiting.remove(sequence)
        sequence.phase = Phase.OPENING
        self.opening += 1
        return sequence.open_order()

    def answered(self, sequence_id: SequenceId) -> Sequence | None:
        """The sequence that an answer to OpenOrAdopt is about, in no place now; None if nobody waits for it."""
        sequence = self.live.get(sequence_id)
        if sequence is None or sequence.phase is not Phase.OPENING:
            return None
        sequence.phase = Phase.WAITING
        self.opening -= 1
        return sequence

    def run(self, sequence: Sequence) -> None:
        """It has a row."""
        sequence.phase = Phase.RUNNING
        self.waiting.settled(sequence)
        insort(self.running, sequence, key=_key)

    def forked(self, sequence: Sequence) -> None:
        """A follower has a row; the daemon learns of it with what the first step on it gives."""
        self.groups.drop(sequence)
        self.run(sequence)

    def told(self, sequence: Sequence) -> None:
        """Its first entry is in this boundary's commit."""
        sequence.drawn, sequence.recorded = None, True
        self.forking[sequence.request.sequence] = sequence

    def preempt(self, sequence: Sequence, now_ns: int) -> None:
        """Gives its row back and waits in its old place."""
        self.running.remove(sequence)
        self.said.change(sequence, preempted=True)
        self.said.rows.append(sequence.ref)
        sequence.preempted(now_ns)
        self.waiting.add(sequence)
        self._part(sequence)

    def _part(self, lead: Sequence) -> None:
        """Who followed it waits for a row of its own."""
        heir = self.groups.part(lead)
        if heir is not None:
            self.waiting.add(heir)

    def others_recorded(self, sequence: Sequence) -> bool:
        """Whether the daemon holds a record of any other live sequence."""
        return any(other.recorded for other in self.live.values() if other is not sequence)

    # ---------------------------------------------------------------------------------------- ends

    def finished(self, sequence: Sequence, finish: FinishReason) -> None:
        """Its last token is in this boundary's commit and event already."""
        self.said.rows.append(sequence.ref)
        self._leave(sequence, finish.name.lower())

    def finished_follower(self, member: Sequence) -> None:
        """As `finished`, for one that never had a row."""
        self.told(member)
        self.groups.drop(member)
        self.waiting.add(member)
        self._leave(member, member.last.name.lower())

    def end(self, sequence: Sequence, finish: FinishReason, error: str = "") -> None:
        """Closes a sequence without a token: cancelled, or its row failed."""
        self._give_up_fork(sequence)
        self._close_record(sequence, finish)
        self.said.events.append(last_event(sequence, finish))
        self._leave(sequence, finish.name.lower(), error)

    def fail(self, sequence: Sequence, error: KvError, code: int | None = None) -> None:
        """Closes a sequence that will not be generated any more. `code`: instead of the error's own."""
        self._give_up_fork(sequence)
        self._close_record(sequence, FinishReason.ERROR)
        self._leave(sequence, "rejected", error.message)
        self.reject(sequence.request, error, code)

    def hand_over(self, sequence: Sequence) -> None:
        """Another worker goes on with it, from its record."""
        error = Unavailable("this worker hands over; submit it to another")
        rejection = rejection_of(sequence.request, error)
        self._leave(sequence, "handed over")
        self.said.handed_over.append(HandedOver(sequence.ref, rejection))

    def reject(self, request: Request, error: KvError, code: int | None = None) -> None:
        self.said.rejections.append(rejection_of(request, error, code))

    def entry_refused(self, entry: CommitEntry, refusal: Refusal) -> None:
        """The record stands where the first refused entry began, and that entry's blocks are still float."""
        self.said.blocks.extend(entry.blocks)
        if entry.fork is not None:
            self._fork_refused(entry.sequence)
            return
        sequence = self.live.get(entry.sequence)
        if sequence is None or sequence.epoch != entry.epoch:
            return
        if sequence.phase is Phase.OPENING:  # preempted since: the answer to its Open comes first
            sequence.canceled = FinishReason.ERROR
            return
        del sequence.tokens[entry.base_recorded :]
        sequence.kv_len = entry.base_kv
        self.fail(sequence, KvError(f"the daemon refused a commit: {refusal.message}"), refusal.code)

    def _give_up_fork(self, sequence: Sequence) -> None:
        """It ends: nobody hears of the token that its lead's row drew."""
        self.forking.pop(sequence.request.sequence, None)
        if sequence.phase is Phase.FOLLOWING:
            self.groups.drop(sequence)
            self.waiting.add(sequence)
        sequence.forget_draw()

    def _fork_refused(self, sequence_id: SequenceId) -> None:
        """There was no room for its record: it opens for itself, later. Steps on their way are its former self's."""
        former = self.forking.pop(sequence_id, None)
        if former is None:
            return
        if former.phase is Phase.RUNNING:
            self.running.remove(former)
        former.phase = Phase.ENDED
        self.live[sequence_id] = former.renewed()
        self.waiting.add(self.live[sequence_id])

    def _close_record(self, sequence: Sequence, finish: FinishReason) -> None:
        if sequence.recorded:
            self.said.change(sequence, finish=finish)
        if sequence.phase is Phase.RUNNING and sequence.recorded:
            self.said.rows.append(sequence.ref)

    def _leave(self, sequence: Sequence, reason: str, error: str = "") -> None:
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.waiting.settled(sequence)
        sequence.phase = Phase.ENDED
        del self.live[sequence.request.sequence]
        self._part(sequence)
        self.said.ended.append(sequence.ended(reason, error))

    # ------------------------------------------------------------------------------------ boundary

    def take(self, step: int) -> Outcome:
        """What this boundary says. Preempted sequences may be opened again, or ended, from now on."""
        outcome = self.said.take(step)
        if outcome.commit is not None:
            for sequence in [one for one in self.waiting if one.settling]:
                sequence.settling = False
                if sequence.canceled is not None:
                    self.end(sequence, sequence.canceled)
        return outcome


def rejection_of(request: Request, error: KvError, code: int | None = None) -> Rejection:
    return Rejection(
        sequence=request.sequence,
        client=request.client,
        code=error.code if code is None else code,
        message=error.message,
        details=error.details,
    )
