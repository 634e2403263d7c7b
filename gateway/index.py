"""One of a request's n continuations: what its worker says goes into the track, messages come out."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.output import Delta, Output
from gateway.tracks import Batch, Track
from gateway.validate import Plan
from gateway.workers import TokensEntry
from holdfast.v1 import generate_pb2 as pb
from kvmanager.messages import FinishReason

STALE_SECONDS: Final = 5.0  # without a word: compare with the record
REPLAY_TOKENS: Final = 512  # in one go: a few milliseconds


class Index:
    """`wake` is set whenever there may be something to do. Which worker speaks is `placement`'s to know."""

    def __init__(self, number: int, request_id: str, plan: Plan, output: Output, wake: asyncio.Event) -> None:
        self.number = number
        self.output = output
        self._request_id = request_id
        self._plan = plan
        self._wake = wake
        self.track: Track[pb.TokenLogprob] = Track(len(plan.prompt))
        self.unsure = False  # the record may say more than was heard, or something else
        self.flush = False  # nothing more will come
        self.finish = FinishReason.NONE  # once the last message was made
        self.heard_at = time.monotonic()
        self.first_at = self.last_at = 0.0  # when tokens came, not when they were sent
        self._matched: str | None = None  # a stop string among tokens that were delivered before
        self._moved = False  # submitted to another worker, which has brought nothing new yet
        self._stalled = 0.0  # beside what the present worker counts

    # ------------------------------------------------------------------------------------ in

    def heard(self, entry: TokensEntry) -> bool:
        """True if it brings tokens that were not known."""
        self.heard_at = time.monotonic()
        known, stalled = self.track.known, self.stalled
        if not self.track.accept(entry):
            if self._moved and entry.epoch < self.track.epoch:
                self.look()  # a former owner's late word; or the daemon lost the record, and epochs begin again
            return False
        new = self.track.known > known
        if new:
            self._came(stalled)
        self._wake.set()
        return new

    def _came(self, stalled: float) -> None:
        """Tokens; if they are the first after a move, the time since the last ones was stalled, all of it."""
        if self._moved:
            gap = self.heard_at - self.last_at if self.last_at else 0.0
            self._stalled, self._moved = stalled + gap - self.track.stalled_seconds, False
        self.first_at = self.first_at or self.heard_at
        self.last_at = self.heard_at

    def moves(self) -> None:
        """Another worker will go on with it."""
        if not self._moved:
            self._stalled, self._moved = self._stalled + self.track.stalled_seconds, True
            self.track.stalled_seconds = 0.0

    def look(self) -> None:
        """The record should be read."""
        self.unsure = True
        self._wake.set()

    def tick(self, now: float) -> None:
        if now - self.heard_at > STALE_SECONDS:
            self.heard_at = now
            self.look()

    async def replay(self, ids: Sequence[int], stop_token_last: bool) -> None:
        """The first output tokens, which the client has: through detokenizer and stop strings, and not sent."""
        for start in range(0, len(ids), REPLAY_TOKENS):
            part = ids[start : start + REPLAY_TOKENS]
            last = stop_token_last and start + len(part) == len(ids)
            self._matched = self.output.push(part, last).matched
            if self._matched is not None:
                break
            await asyncio.sleep(0)  # others get their turn
        self.track.skip(ids)

    @property
    def stalled(self) -> float:
        """Seconds of decode in which it was not computed."""
        return max(0.0, self._stalled + self.track.stalled_seconds)

    # ------------------------------------------------------------------------------------ out

    def drain(self, arrival: float) -> Iterator[pb.GenerateResponse]:
        """The messages that are due now; the last one of the index has its Finish."""
        while not self.finish and self._due():
            yield self._message(arrival)

    def _due(self) -> bool:
        """stream_interval tokens are here, or nothing more will join those that are."""
        track = self.track
        if self._matched is not None:
            return True
        if not track.ready:
            return track.done
        behind = track.known > track.end
        first = self.output.count == 0
        whole = track.ready >= self._plan.stream_interval
        return whole or first or behind or track.complete or self.flush

    def _message(self, arrival: float) -> pb.GenerateResponse:
        first = self.output.count == 0
        batch = self.track.take(1 if first else self._plan.stream_interval)
        delta = self._delta(batch)
        response = pb.GenerateResponse(
            request_id=self._request_id,
            index=self.number,
            next_offset=self.output.count,
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=batch.logprobs[: len(delta.token_ids)],
        )
        if first and self.number == 0 and self.track.prompt_logprobs:
            response.prompt_logprobs.extend(self.track.prompt_logprobs)
        if delta.matched is not None or self.track.done:
            self.finish = FinishReason.STOP if delta.matched is not None else self.track.finish
            response.finish.CopyFrom(self._finish(delta.matched, arrival))
        return response

    def _delta(self, batch: Batch[pb.TokenLogprob]) -> Delta:
        track = self.track
        if self._matched is not None:
            return Delta(matched=self._matched)
        stop_token = track.done and track.finish is FinishReason.STOP and track.stop_token_id is not None
        delta = self.output.push(batch.token_ids, stop_token)
        if track.done and delta.matched is None:
            tail = self.output.end()
            delta.text += tail.text
            delta.matched = tail.matched
        return delta

    def _finish(self, matched: str | None, arrival: float) -> pb.Finish:
        track = self.track
        finish = pb.Finish(
            reason=int(self.finish),  # type: ignore[arg-type]
            usage=self.usage(),
            timings=pb.Timings(
                queue=track.queue_seconds,
                ttft=max(0.0, self.first_at - arrival) if self.first_at else 0.0,
                decode=self.last_at - self.first_at,
                stalled=min(self.stalled, self.last_at - self.first_at),
            ),
            seed=self._plan.seed,
        )
        if matched is not None:
            finish.stop = matched
        elif self.finish is FinishReason.STOP and track.stop_token_id is not None:
            finish.stop_token_id = track.stop_token_id
        return finish

    def usage(self) -> pb.Usage:
        """What was delivered so far."""
        return pb.Usage(
            prompt_tokens=len(self._plan.prompt),
            completion_tokens=self.output.count,
            cached_tokens=self.track.cached_tokens,
        )
