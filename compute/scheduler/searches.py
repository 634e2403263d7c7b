"""All beam searches of a worker: what their rows gave, how beams are born and go, how a search ends.

    request   WAITING ─> OPENING ─> RUNNING: prompt ─> gives candidates ─> SEARCHING: parked, its beams run ─> ENDED
    beam      chosen ─> RUNNING: first row, its tail copied before it ─> gives candidates ─> goes on, or is closed
                          │ Revoke of any: all of them give their rows back, and are resumed one by one
                          └─> WAITING ─> OPENING ─> RUNNING: its tokens again ─> gives candidates

A search goes on when every beam has given its candidates. Of a beam's children the best goes on in its row; the others
fork, and are told to the daemon at once, so that its records always hold the whole search.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

from compute.plan import RowResult, StepRow
from compute.scheduler.beam_records import answer, closed, dropped, grown, hypothesis, index_ended, told
from compute.scheduler.floats import Float
from compute.scheduler.limits import Limits
from compute.scheduler.outcome import HandedOver
from compute.scheduler.progress import Progress
from compute.scheduler.roster import Roster, rejections_of
from compute.scheduler.search import Growth, Hypothesis, Search
from compute.scheduler.sequence import Computed, Phase, Sequence, Tail
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import BlockRef, CommitEntry, FinishReason, Refusal, SequenceId, SequenceRef


class Searches:
    """One worker's. What ends a request does so for all its indexes."""

    def __init__(self, limits: Limits, roster: Roster, blocks: Float, progress: Progress) -> None:
        self._limits, self._roster, self._float, self._progress = limits, roster, blocks, progress
        self._touched: list[Sequence] = []  # whose rows have landed at this boundary

    def find(self, sequence_id: SequenceId) -> Search | None:
        """The search that gives an index of this name."""
        if not self._roster.searches:
            return None
        return next((one for one in self._roster.searches if sequence_id in one.indexes), None)

    # --------------------------------------------------------------------------------------- landing

    def landed(self, sequence: Sequence, row: StepRow, taken: list[BlockRef], got: RowResult) -> None:
        """What one row gave; told when the whole step has landed."""
        sequence.computed = Computed(sequence.kv_len, taken)
        sequence.kv_len, sequence.alone = row.start + len(row.token_ids), False
        sequence.prompt_logprobs.extend(got.prompt_logprobs)
        if row.sample:
            sequence.ahead -= 1
            sequence.candidates = got.candidates
        self._touched.append(sequence)

    def advance(self, now_ns: int) -> None:
        """The step has landed: searches whose beams have all spoken go on."""
        touched, self._touched = self._touched, []
        for sequence in touched:
            search = sequence.search
            if sequence.computed is None or search is None:
                continue  # told already, or over
            if search.ready:
                self._go_on(search, now_ns)
            else:
                self._say_progress(sequence)
        for search in self._roster.searches if touched else ():
            self._park(search)

    def _say_progress(self, sequence: Sequence) -> None:
        self._roster.said.entries.append(grown(sequence))
        sequence.computed = None

    def _go_on(self, search: Search, now_ns: int) -> None:
        request = search.request
        if not search.beams:
            self._progress.prompt_tokens += request.prompt_len
            request.first_token_ns = now_ns
        request.last_token_ns = now_ns
        if request.stalled_since_ns is not None:
            request.stalled_ns += now_ns - request.stalled_since_ns
            request.stalled_since_ns = None
        going, ended = search.grow(self._limits)
        new, worse = search.keep(ended)
        for one in worse:
            self._drop(one)
        if search.over(going):
            self._finish(search)
        else:
            self._choose(search, going, new, now_ns)

    def _choose(
        self, search: Search, going: list[Growth], new: list[tuple[Hypothesis, Sequence]], now_ns: int
    ) -> None:
        """The next beams. Parents are told before those that begin with their blocks, and closed after them."""
        said, former = self._roster.said, search.beams
        moving: dict[SequenceId, Growth] = {}  # by beam: the child that goes on in its row
        newborn = []
        for one in going:
            if former and moving.setdefault(one.parent.request.sequence, one) is one:
                newborn.append(one.parent)
            else:
                newborn.append(self._born(search, one))
        begun = [told(one) for one in newborn if one.request.sequence not in moving]
        endings = [hypothesis(search, one, parent) for one, parent in new]
        if not former:
            self._say_progress(search.request)
        for one in moving.values():
            said.entries.append(self._move(search, one, now_ns))
        said.entries += [*begun, *endings]
        for beam in former:
            if beam.request.sequence not in moving:
                self._close(beam)
        for beam in newborn:
            if beam.request.sequence not in moving:
                self._roster.join(beam)
        search.beams = newborn

    def _move(self, search: Search, growth: Growth, now_ns: int) -> CommitEntry:
        """The beam goes on in its own row."""
        beam = growth.parent
        beam.logprobs = search.logprobs(growth)
        beam.append(growth.token_id, now_ns)
        beam.score, beam.candidates = growth.score, ()
        entry = grown(beam, (growth.token_id,))
        beam.computed = None
        return entry

    def _born(self, search: Search, growth: Growth) -> Sequence:
        """A beam that forks from its parent, with a tail of its own when it first runs."""
        parent, size = growth.parent, self._limits.block_size
        asked = replace(
            search.request.request,
            sequence=search.next_id(),
            record=b"",
            beams=None,
            prompt_logprobs=0,
            adopt=False,
        )
        child = Sequence(asked, self._roster.next_serial(), search.request.forbidden)
        child.search, child.parent = search, parent.ref
        child.tokens = [*parent.tokens, growth.token_id]
        child.logprobs, child.score = search.logprobs(growth), growth.score
        shared, slots = divmod(len(parent.tokens), size)
        child.block_ids = parent.block_ids[:shared]
        child.kv_len = child.launched_len = shared * size
        child.tail = Tail(parent.block_ids[shared], slots) if slots else None
        child.epoch, child.recorded = 1, True
        return child

    def _park(self, search: Search) -> None:
        """The request's own row goes once every beam has copied its tail."""
        request = search.request
        if request.phase is Phase.RUNNING and search.beams and not any(beam.tail for beam in search.beams):
            self._give_row_back(request)

    def _give_row_back(self, request: Sequence) -> None:
        roster = self._roster
        roster.running.remove(request)
        roster.said.change(request, preempted=True)
        roster.said.rows.append(request.ref)
        request.phase, request.kv_len, request.block_ids = Phase.SEARCHING, 0, []

    # --------------------------------------------------------------------------------------- pressure

    def preempt(self, search: Search, now_ns: int) -> None:
        """Every row of the search is given back; its beams are resumed in their order."""
        running = [member for member in search.members if member.phase is Phase.RUNNING]
        for member in running:
            self._roster.preempt(member, now_ns)
        if search.beams and search.request.phase is Phase.RUNNING:
            self._give_row_back(search.request)
        if running and search.beams:
            search.request.preemptions += 1
            search.request.stalled_since_ns = search.request.stalled_since_ns or now_ns

    def waits(self, search: Search, now_ns: int, for_prefix: bool) -> bool:
        """The daemon has no room for a beam's row: until it has, the others hold none that somebody else may need. A
        prefix may be what another of them computes. Whether the search ends."""
        if self.answered(search):
            return True
        if not for_prefix and search.beams and any(beam.phase is Phase.RUNNING for beam in search.beams):
            self.preempt(search, now_ns)
        return False

    # ------------------------------------------------------------------------------------------- ends

    def _finish(self, search: Search) -> None:
        """The best hypotheses are the answers. Their records are made before the search's own is finished."""
        request, said = search.request, self._roster.said
        best = search.finished[: len(search.indexes)]
        if len(best) < len(search.indexes):
            self.end(search, FinishReason.ERROR, f"{len(best)} hypotheses, asked for {len(search.indexes)}")
            return
        entries, events = answer(search, best)
        said.events += events
        for beam in search.beams:
            self._close(beam)
        for one in search.finished:
            self._drop(one)
        said.entries += entries
        if request.phase is Phase.RUNNING:
            said.rows.append(request.ref)
        request.tokens, request.computed = list(best[0].tokens), None
        self._leave(search, best[0].finish.name.lower())

    def hand_over(self, search: Search) -> None:
        """Another worker goes on with it, or begins it anew. Its gateway hears so when the last record is given up."""
        error = Unavailable("this worker hands over; submit it to another")
        said, request = self._roster.said, search.request
        for beam in search.beams:
            self._undo(beam)
            said.handed_over.append(HandedOver(beam.ref, ()))
            self._roster.vanish(beam)
        said.handed_over.append(HandedOver(request.ref, rejections_of(request.request, error)))
        self._leave(search, "handed over")

    def end(self, search: Search, finish: FinishReason, error: str = "") -> None:
        """Closes a search without an answer, at once or when the rows on their way are here."""
        search.ending = finish
        if self._opening(search):
            return
        self._dissolve(search, finish)
        self._roster.said.events += [index_ended(search, index, finish) for index in search.indexes]
        self._leave(search, finish.name.lower(), error)

    def fail(self, search: Search, error: KvError, code: int | None = None) -> None:
        """As `end`, for a request that will not be generated any more; nobody of it is OPENING."""
        self._dissolve(search, FinishReason.ERROR)
        self._reject(search, error, code)

    def answered(self, search: Search) -> bool:
        """A row that was on its way is here, or will not come. Whether the search ends now."""
        if search.ending is None or self._opening(search):
            return False
        self.end(search, search.ending)
        return True

    def refused(self, entries: list[CommitEntry], refusals: dict[SequenceId, Refusal]) -> None:
        """The daemon had no room for a fork, and took nothing of its search: everything stands where the entries begin.
        There it is closed."""
        said = self._roster.said
        standing = {entry.sequence for entry in entries}
        for entry in entries:
            said.blocks.extend(entry.blocks)
            search = self._search_of(entry)
            if search is not None:
                self._dissolve(search, FinishReason.ERROR, standing)
                refusal = refusals[entry.sequence]
                self._reject(search, KvError(refusal.message), refusal.code)
        for entry in entries:
            if entry.fork is None and entry.finish is not FinishReason.ERROR:
                said.entries.append(closed(entry))
                said.rows.append(SequenceRef(entry.sequence, entry.epoch))

    def _search_of(self, entry: CommitEntry) -> Search | None:
        group = entry.fork.group if entry.fork is not None else b""
        return next((one for one in self._roster.searches if one.request.request.group == group), None)

    def _opening(self, search: Search) -> bool:
        return any(member.phase is Phase.OPENING for member in search.members)

    def _dissolve(
        self, search: Search, finish: FinishReason, standing: AbstractSet[SequenceId] = frozenset()
    ) -> None:
        """Closes every record of the search but those in `standing`."""
        for beam in search.beams:
            self._close(beam, tell=beam.request.sequence not in standing)
        for one in search.finished:
            if one.record not in standing:
                self._drop(one)
        request = search.request
        if request.recorded and request.request.sequence not in standing:
            self._undo(request)
            self._roster.said.change(request, finish=finish)
            if request.phase is Phase.RUNNING:
                self._roster.said.rows.append(request.ref)

    def _undo(self, member: Sequence) -> None:
        """What its row gave is told to nobody."""
        if member.computed is not None:
            self._float.put_back(member.computed.taken)
            member.kv_len, member.computed = member.computed.base_kv, None

    def _close(self, beam: Sequence, tell: bool = True) -> None:
        """A beam goes: nobody grows from it."""
        self._undo(beam)
        if tell:
            self._roster.said.change(beam, finish=FinishReason.CANCELLED)
            if beam.phase is Phase.RUNNING:
                self._roster.said.rows.append(beam.ref)
        self._roster.vanish(beam)

    def _drop(self, one: Hypothesis) -> None:
        """The daemon keeps its record no longer."""
        if one.record is not None:
            self._roster.said.entries.append(dropped(one))

    def _reject(self, search: Search, error: KvError, code: int | None) -> None:
        self._roster.reject(search.request.request, error, code)
        self._leave(search, "rejected", error.message)

    def _leave(self, search: Search, reason: str, error: str = "") -> None:
        self._roster.vanish(search.request)
        self._roster.searches.remove(search)
        self._roster.gone(search.request, reason, error)
