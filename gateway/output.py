"""One index from token ids to messages: text, stop strings, deltas, counts. No worker, no gRPC context."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.stops import StopMatcher
from gateway.tokenizer import Detokenizer


@dataclass(slots=True)
class Delta:
    """What one message carries: ids, and the text that may be sent with them."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    matched: str | None = None  # a stop string: the index ends here


class Output:
    """Turns tokens into deltas. Without a detokenizer text stays empty and stop strings cannot match."""

    def __init__(
        self, detokenizer: Detokenizer | None, stops: Sequence[str], include_stop: bool, min_tokens: int
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stops, include_stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self.count = 0  # tokens delivered

    def push(self, ids: Sequence[int], stop_token_last: bool = False) -> Delta:
        """The delta for `ids`; tokens after the one that completes a stop string are dropped.

        `stop_token_last`: the last id is a matched stop token, whose text is not sent (unless include_stop).
        """
        delta = Delta()
        pieces: list[str] = []
        for place, token_id in enumerate(ids, 1):
            self.count += 1
            delta.token_ids.append(token_id)
            silent = stop_token_last and place == len(ids) and not self._include_stop
            if self._detokenizer is None or silent:
                continue
            scan = self._stops.push(self._detokenizer.push(token_id), self.count >= self._min_tokens)
            pieces.append(scan.text)
            if scan.matched is not None:
                delta.matched = scan.matched
                break
        delta.text = "".join(pieces)
        return delta

    def end(self) -> Delta:
        """The text that was held back: nothing follows."""
        held = self._detokenizer.flush() if self._detokenizer else ""
        scan = self._stops.push(held, self.count >= self._min_tokens)
        if scan.matched is not None:
            return Delta(text=scan.text, matched=scan.matched)
        return Delta(text=scan.text + self._stops.flush())
