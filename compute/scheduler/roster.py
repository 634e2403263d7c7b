"""Every live sequence, in exactly one of three places, and the one way out of them.

    submit ──> WAITING ──OpenOrAdopt──> OPENING ──Opened──> RUNNING ──> finished
                  ^                        │ Wait              │
                  └────────────────────────┴───────────────────┘ Revoke: preempted, resumed with all its tokens

Whoever leaves does so with exactly one terminal event or rejection, and with its record closed if the daemon has one.
"""

from bisect import insort
from functools import partial
from operator import attrgetter

from compute.request import Request
from compute.scheduler.boundary import Boundary
from compute.scheduler.groups import Groups
from compute.scheduler.outcome import HandedOver, Outcome, Rejection
from compute.scheduler.results import ended_line, last_event
from compute.scheduler.search import Search
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
        self.searches: list[Search] = []
        self.said = Boundary()
        self._serial = 0
        self._left = self._left_whole = 0  # requests that are gone; whose rows are, too

    # -------------------------------------------------------------------------------------- places

    def admit(self, request: Request, eos_ids: frozenset[int]) -> None:
        sequence = Sequence(request, self.next_serial(), eos_ids)
        self.live[request.sequence] = sequence
        if request.beams is not None:
            sequence.search = Search(sequence)
            self.searches.append(sequence.search)
            self.waiting.add(sequence)
        elif not self.groups.join(sequence):
            self.waiting.add(sequence)

    def next_serial(self) -> int:
        """Later than all before; no two sequences share one."""
        self._serial += 1
        return self._serial

    @property
    def places(self) -> int:
        """That rows take, and those kept for the beams of searches that have begun."""
        return self.opening + len(self.running) + sum(map(kept_places, self.searches))

    def open_next(self, now_ns: int, most: int) -> OpenOrAdopt | None:
        """Asks for the row of the sequence whose turn it is, if with its places they are at most `most`."""
        sequence = self.waiting.next(now_ns, partial(self.fits, most=most))
        if sequence is None:
            return None
        self.waiting.remove(sequence)
        sequence.phase = Phase.OPENING
        sequence.asked = self._left_whole
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

    def fits(self, sequence: Sequence, most: int) -> bool:
        needed = needed_places(sequence)
        return not needed or self.places + needed <= most

    def retry_ns(self, most: int) -> int | None:
        """When a row that was refused may be asked for again, if there are places for it."""
        return self.waiting.next_retry_ns(partial(self.fits, most=most))

    def join(self, beam: Sequence) -> None:
        """A new beam, which begins with a row."""
        self.live[beam.request.sequence] = beam
        self.run(beam)

    def wait_for(self, beam: Sequence) -> None:
        """Another worker's beam, whose row is to be asked for."""
        self.live[beam.request.sequence] = beam
        self.waiting.add(beam)

    def vanish(self, sequence: Sequence) -> None:
        """It is in no place any more; what there is to say of it is said by others."""
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        elif sequence.phase is Phase.WAITING:
            self.waiting.remove(sequence)
        self.waiting.settled(sequence)
        sequence.phase = Phase.ENDED
        self.live.pop(sequence.request.sequence, None)

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
        """Whether the daemon held a record of any other request when it answered."""
        if self._left > sequence.asked:
            return True
        own = sequence.search
        return any(
            other.recorded and other is not sequence and (own is None or other.search is not own)
            for other in self.live.values()
        )

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
        self._leave(sequence, "handed over")
        self.said.handed_over.append(HandedOver(sequence.ref, rejections_of(sequence.request, error)))

    def reject(self, request: Request, error: KvError, code: int | None = None) -> None:
        self.said.rejections += rejections_of(request, error, code)

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
        self.gone(sequence, reason, error)

    def gone(self, sequence: Sequence, reason: str, error: str = "") -> None:
        """A request has left, and its line is written."""
        self._left += 1
        self.said.ended.append(ended_line(sequence, reason, error))

    # ------------------------------------------------------------------------------------ boundary

    def take(self, step: int, released: bool) -> Outcome:
        """What this boundary says. Preempted sequences may be opened again, or ended, from now on. `released`: no row
        waits for a step on its way."""
        outcome = self.said.take(step)
        if released:
            self._left_whole = self._left
        if outcome.commit is not None:
            for sequence in [one for one in self.waiting if one.settling]:
                sequence.settling = False
                if sequence.canceled is not None:
                    self.end(sequence, sequence.canceled)
        return outcome


def rejections_of(request: Request, error: KvError, code: int | None = None) -> list[Rejection]:
    """Of a search, every index."""
    return [
        Rejection(
            sequence=sequence,
            client=request.client,
            code=error.code if code is None else code,
            message=error.message,
            details=error.details,
        )
        for sequence in request.indexes
    ]


def needed_places(sequence: Sequence) -> int:
    """Those of a search are taken when it begins, and kept for all of its beams."""
    search = sequence.search
    if search is None:
        return 1
    return 0 if search.beams else search.width


def kept_places(search: Search) -> int:
    """Places of a search that has begun beyond those that its members have."""
    have = sum(one.phase in (Phase.OPENING, Phase.RUNNING) for one in {*search.beams, search.request})
    return max(0, search.width - have) if have or search.beams else 0
