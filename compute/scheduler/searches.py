"""All beam searches of a worker: what their rows gave, how beams are born and go, and how a search is taken over.

    request   WAITING ─> OPENING ─> RUNNING: prompt ─> gives candidates ─> SEARCHING: parked, its beams run ─> ENDED
    beam      chosen ─> RUNNING: first row, its tail copied before it ─> gives candidates ─> goes on, or is closed
                          │ Revoke of any: all of them give their rows back, and are resumed one by one
                          └─> WAITING ─> OPENING ─> RUNNING: its tokens again ─> gives candidates
    adopted   request OPENING ─> SEARCHING; its beams, as the daemon has them ─> WAITING, and on as above

A search goes on when every beam has given its candidates. Of a beam's children the best goes on in its row; the others
fork, and are told to the daemon at once, so that its records always hold the whole search.
"""

from dataclasses import replace

from compute.plan import RowResult, StepRow
from compute.scheduler.beam import Computed, Tail
from compute.scheduler.beam_records import grown, hypothesis, told
from compute.scheduler.floats import Float
from compute.scheduler.limits import Limits
from compute.scheduler.progress import Progress
from compute.scheduler.roster import Roster
from compute.scheduler.search import Growth, Hypothesis, Search
from compute.scheduler.search_ends import SearchEnds
from compute.scheduler.sequence import Phase, Sequence
from kvmanager.errors import KvError
from kvmanager.messages import BlockRef, CommitEntry, Opened, SequenceId


class Searches:
    """One worker's."""

    def __init__(self, limits: Limits, roster: Roster, blocks: Float, progress: Progress) -> None:
        self._limits, self._roster, self._float, self._progress = limits, roster, blocks, progress
        self.ends = SearchEnds(roster, blocks)
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
        """What there is, but for the last token's slot: who takes the beam over computes it again, for candidates."""
        assert sequence.computed is not None
        whole = sequence.kv_len
        sequence.kv_len = min(whole, len(sequence.tokens) - 1)
        if sequence.computed.taken or sequence.kv_len > sequence.computed.base_kv:
            self._roster.said.entries.append(grown(sequence))
        sequence.computed = Computed(sequence.kv_len, []) if sequence.kv_len < whole else None
        sequence.kv_len = whole

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
            self.ends.drop(one)
        if search.over(going):
            self.ends.finish(search)
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
            said.entries.append(grown(search.request))
            search.request.computed = None
        for one in moving.values():
            said.entries.append(self._move(search, one, now_ns))
        said.entries += [*begun, *endings]
        for beam in former:
            if beam.request.sequence not in moving:
                self.ends.close(beam)
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
        child = self._beam(search, search.next_id(), [*parent.tokens, growth.token_id], growth.score)
        child.parent, child.logprobs = parent.ref, search.logprobs(growth)
        shared, slots = divmod(len(parent.tokens), size)
        child.block_ids = parent.block_ids[:shared]
        child.kv_len = child.launched_len = shared * size
        child.tail = Tail(parent.block_ids[shared], slots) if slots else None
        child.epoch = 1
        return child

    def _beam(self, search: Search, name: SequenceId, tokens: list[int], score: float) -> Sequence:
        request = search.request
        asked = replace(
            request.request, sequence=name, record=b"", beams=None, prompt_logprobs=0, adopt=False
        )
        beam = Sequence(asked, self._roster.next_serial(), request.forbidden)
        beam.search, beam.tokens, beam.score, beam.recorded = search, tokens, score, True
        return beam

    # -------------------------------------------------------------------------------------- adoption

    def take_over(self, search: Search, opened: Opened) -> None:
        """Goes on with what another worker's search had: beams and hypotheses, each with its score. The beams' rows
        are asked for one by one. KvError if the daemon's record is of another search."""
        request = search.request
        if search.beams or list(opened.token_ids) != request.tokens:
            raise KvError("a search with other beams, or another prompt, was opened")
        request.epoch, request.recorded, request.phase = opened.epoch, True, Phase.SEARCHING
        request.cached_len = opened.cached_len
        self._roster.waiting.settled(request)
        for member in sorted(opened.members, key=lambda one: -one.score):
            tokens = [*request.tokens, *member.token_ids]
            if member.finish:
                search.take_over(tokens, member)
            else:
                search.beams.append(self._beam(search, member.sequence, tokens, member.score))
        for beam in search.beams:
            self._roster.wait_for(beam)
        self.ends.answered(search)

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
            self.ends.undo(member)
            self._roster.preempt(member, now_ns)
        if search.beams and search.request.phase is Phase.RUNNING:
            self._give_row_back(search.request)
        if running and search.beams:
            search.request.preemptions += 1
            search.request.stalled_since_ns = search.request.stalled_since_ns or now_ns

    def waits(self, search: Search, now_ns: int, for_prefix: bool) -> bool:
        """The daemon has no room for a beam's row: until it has, the others hold none that somebody else may need. A
        prefix may be what another of them computes. Whether the search ends."""
        if self.ends.answered(search):
            return True
        if not for_prefix and search.beams and any(beam.phase is Phase.RUNNING for beam in search.beams):
            self.preempt(search, now_ns)
        return False
