"""How a beam search ends on this worker: with its answers, without them, or at another worker.

What ends a request does so for all its indexes. Nothing of the search stays with the daemon but its answers' records;
of what this worker had not taken over yet, the daemon lets go when the search's own record is finished.
"""

from collections.abc import Set as AbstractSet

from compute.scheduler.beam_records import answer, closed, dropped, index_ended
from compute.scheduler.floats import Float
from compute.scheduler.outcome import HandedOver
from compute.scheduler.roster import Roster, rejections_of
from compute.scheduler.search import Hypothesis, Search
from compute.scheduler.sequence import Phase, Sequence
from kvmanager.errors import KvError, Unavailable
from kvmanager.messages import CommitEntry, FinishReason, Refusal, SequenceId, SequenceRef


class SearchEnds:
    """One worker's."""

    def __init__(self, roster: Roster, blocks: Float) -> None:
        self._roster, self._float = roster, blocks

    def finish(self, search: Search) -> None:
        """The best hypotheses are the answers. Their records are made before the search's own is finished."""
        request, said = search.request, self._roster.said
        best = search.finished[: len(search.indexes)]
        if len(best) < len(search.indexes):
            self.end(search, FinishReason.ERROR, f"{len(best)} hypotheses, asked for {len(search.indexes)}")
            return
        entries, events = answer(search, best)
        said.events += events
        for beam in search.beams:
            self.close(beam)
        for one in search.finished:
            self.drop(one)
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
            self.close(beam, tell=beam.request.sequence not in standing)
        for one in search.finished:
            if one.record not in standing:
                self.drop(one)
        request = search.request
        if request.recorded and request.request.sequence not in standing:
            self.undo(request)
            self._roster.said.change(request, finish=finish)
            if request.phase is Phase.RUNNING:
                self._roster.said.rows.append(request.ref)

    def undo(self, member: Sequence) -> None:
        """What its row gave is told to nobody."""
        if member.computed is not None:
            self._float.put_back(member.computed.taken)
            member.kv_len, member.computed = member.computed.base_kv, None

    def close(self, beam: Sequence, tell: bool = True) -> None:
        """A beam goes: nobody grows from it."""
        self.undo(beam)
        if tell and beam.epoch:
            self._roster.said.change(beam, finish=FinishReason.CANCELLED)
            if beam.phase is Phase.RUNNING:
                self._roster.said.rows.append(beam.ref)
        self._roster.vanish(beam)

    def drop(self, one: Hypothesis) -> None:
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
