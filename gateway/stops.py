r"""Stop strings over a stream of text pieces. Pure: no tokens, no tokenizer.

    sent ............ | held ......... | not seen yet
                      ^ the longest suffix that may be the begin of a stop string

The first match is the one that ends first; of several that end together, the longest. That depends on the text
alone, never on how it was cut into pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """What a piece gave: text that may be sent, and the stop string that matched, if one did."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Feed pieces with `push`; after a match, or after `flush`, feed no more."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, piece: str, may_match: bool = True) -> Scan:
        """`may_match` false: no stop string ends in this piece (min_tokens), though one may begin in it."""
        if not self._stops:
            return Scan(piece)
        seen, text = len(self._held), self._held + piece
        found = self._first(text, seen) if may_match else None
        if found:
            start, end, stop = found
            self._held = ""
            return Scan(text[: end if self._include else start], stop)
        keep = self._begin_of_stop(text)
        self._held = text[keep:]
        return Scan(text[:keep])

    def flush(self) -> str:
        """The held text: nothing follows that could complete a stop string."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str, seen: int) -> tuple[int, int, str] | None:
        """(start, end, stop) of the match that ends first after `seen`."""
        best = None
        for stop in self._stops:
            start = text.find(stop, max(0, seen - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < (best[1], best[0])):
                best = (start, start + len(stop), stop)
        return best

    def _begin_of_stop(self, text: str) -> int:
        """Where the longest suffix of `text` begins that is a proper prefix of a stop string."""
        least = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= start < least:
                if stop.startswith(text[start:]):
                    least = start
                    break
                start = text.find(stop[0], start + 1)
        return least
