"""One of a request's n continuations: what its worker says goes into the track, messages come out."""

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from gateway.output import Delta, Output
from gateway.tracks import BUFFER_TOKENS, Batch, Track
from gateway.validate import Plan
from gateway.workers import Rejection, TokensEntry
from holdfast.v1 import generate_pb2 as pb
from kvmanager.messages import FinishReason

STALE_SECONDS: Final = 5.0  # without a word: compare with the record


class Index:
    """A fleet.Sink. `wake` is set whenever there may be something to do."""

    def __init__(self, number: int, request_id: str, plan: Plan, output: Output, wake: asyncio.Event) -> None:
        self.number = number
        self.output = output
        self._request_id = request_id
        self._plan = plan
        self._wake = wake
        self.reset(b"")

    def reset(self, sequence: bytes) -> None:
        """Begins (again) as `sequence`; nothing of it was shown."""
        assert self.output.count == 0
        self.sequence = sequence
        whole = self._plan.beam_width > 1  # it comes at once: nothing is read again, log-probabilities stay
        limit = self._plan.stopping.max_tokens if whole else BUFFER_TOKENS
        self.track: Track[pb.TokenLogprob] = Track(len(self._plan.prompt), max(limit, BUFFER_TOKENS))
        self.rejection: Rejection | None = None
        self.orphaned = False  # its worker is gone
        self.doomed = False  # and the record does not hold its end
        self.stale = False
        self.finish = FinishReason.NONE  # once the last message was made
        self.heard_at = time.monotonic()
        self.first_at = self.last_at = 0.0  # when tokens came, not when they were sent

    # ------------------------------------------------------------------------------------ in: fleet.Sink

    def heard(self, entry: TokensEntry) -> None:
        self.heard_at = time.monotonic()
        if self.track.accept(entry):
            if entry.token_ids:
                self.first_at = self.first_at or self.heard_at
                self.last_at = self.heard_at
            self._wake.set()

    def rejected(self, rejection: Rejection) -> None:
        self.rejection = rejection
        self._wake.set()

    def lost(self) -> None:
        self.orphaned = True
        self._wake.set()

    def tick(self, now: float) -> None:
        if now - self.heard_at > STALE_SECONDS:
            self.heard_at, self.stale = now, True
            self._wake.set()

    @property
    def speechless(self) -> bool:
        """No worker will say more of it, and its end is not known."""
        return self.track.final is None and (self.orphaned or self.rejection is not None)

    # ------------------------------------------------------------------------------------ out

    def drain(self, arrival: float) -> Iterator[pb.GenerateResponse]:
        """The messages that are due now; the last one of the index has its Finish."""
        while not self.finish and self._due():
            yield self._message(arrival)

    def _due(self) -> bool:
        """stream_interval tokens are here, or nothing more will join those that are."""
        track = self.track
        if not track.ready:
            return track.done
        behind = track.known > track.end
        first = self.output.count == 0
        whole = track.ready >= self._plan.stream_interval
        return whole or first or behind or track.complete or self.doomed

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
                stalled=track.stalled_seconds,
            ),
            seed=self._plan.seed,
            score=track.score,
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
