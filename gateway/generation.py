"""One request from Submit to its last message: its indexes' messages, and what must be read from the daemon's record.

Where the indexes run, and what happens when a worker goes, is `placement`. Here a lost worker is a pause. When none
is found in time, what the daemon has recorded is still delivered; then the request fails as a whole.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Final

import grpc

from gateway.errors import Refusal, internal
from gateway.fleet import Fleet
from gateway.index import Index
from gateway.membership import Recorded
from gateway.output import Output
from gateway.placement import Binding, Placement, sequence_id
from gateway.routing import WorkerKey
from gateway.tokenizer import TextCodec
from gateway.validate import Plan
from gateway.workers import Submission, pack_ids
from holdfast.mix import mix
from holdfast.v1 import generate_pb2 as pb
from kvmanager.errors import KvError, NotFound
from kvmanager.messages import FinishReason

RETRY_SECONDS: Final = 0.2  # between reads of the record


class Generation:
    """`place` or `scatter` it, then call `next` until it gives nothing; `close` or `leave` in any case."""

    def __init__(
        self,
        fleet: Fleet,
        bindings: Sequence[Binding],
        wake: asyncio.Event,
        worker_wait: float,
        arrival_ns: int,
    ) -> None:
        self._fleet = fleet
        self._worker_wait = worker_wait
        self._arrival = arrival_ns / 1e9
        self._wake = wake
        self._parting = False
        self._placement = Placement(fleet, bindings, worker_wait, wake)
        self.indexes = [binding.index for binding in bindings]

    @property
    def _open(self) -> Sequence[Binding]:
        return self._placement.open

    @property
    def waiting(self) -> int:
        """Indexes without a first token."""
        return sum(index.track.known == index.track.prompt_len for index in self.indexes)

    def place(self, worker: WorkerKey) -> None:
        """Submits every open index to `worker`, or to another if it is gone."""
        self._placement.submit(worker)

    def scatter(self) -> None:
        """Submits every open index to whichever worker is ready."""
        self._placement.scatter()

    # ------------------------------------------------------------------------------------ stream

    async def next(self) -> list[pb.GenerateResponse]:
        """The messages that are due, in each index's order; nothing once every index is finished.

        Raises Refusal when the request fails as a whole.
        """
        while self._open:
            self._wake.clear()
            await self._read_records()
            found = [message for binding in self._open for message in binding.index.drain(self._arrival)]
            self._settle()
            if found:
                return found
            if self._placement.failure is not None and self._open:
                raise self._placement.failure
            if self._open:
                await self._wake.wait()
        return []

    def _settle(self) -> None:
        """Lets go of finished indexes."""
        for binding in [binding for binding in self._open if binding.index.finish]:
            self._placement.settle(binding)
            if binding.index.finish is FinishReason.ERROR and len(self.indexes) == 1:
                raise internal()

    async def _read_records(self) -> None:
        """Whatever must be read now, so that each index can go on."""
        if self._placement.failure is not None and not self._parting:
            self._parting = True
            for binding in self._open:
                binding.index.unsure = binding.index.flush = True
        for binding in list(self._open):
            if binding.index.unsure:
                await self._look(binding)
            if binding.index.track.missing:
                await self._fill(binding)

    async def _look(self, binding: Binding) -> None:
        """Compares with the record: it may be ahead of what was heard, have ended, or be another than it was."""
        index, track = binding.index, binding.index.track
        index.unsure = False
        epoch, sequence = track.epoch, binding.sequence
        try:
            recorded = await self._fleet.record(sequence, track.end)
        except KvError:
            return  # not opened yet, or the daemon is away: the next tick asks again
        if track.ended or sequence != binding.sequence:
            return
        if recorded.epoch < epoch == track.epoch:
            track.begin_again(recorded.epoch, recorded.recorded_len)
        self._take(binding, recorded)

    def _take(self, binding: Binding, recorded: Recorded) -> None:
        """What the record says. A cancel is no end, for whoever still listens did not ask for it."""
        track = binding.index.track
        track.feed(recorded.first, recorded.token_ids)
        cancelled = recorded.finish is FinishReason.CANCELLED
        finish = FinishReason.NONE if cancelled else recorded.finish
        track.learn(recorded.recorded_len, finish, recorded.stop_token_id or None)
        if cancelled and not track.ended and not binding.adrift:
            self._placement.reopen(binding)

    async def _fill(self, binding: Binding) -> None:
        """Fills the track from the record; waits while the daemon is away or the record is to come, up to a bound."""
        track, deadline = binding.index.track, time.monotonic() + self._worker_wait
        while track.missing:
            try:
                recorded = await self._fleet.record(binding.sequence, track.end)
            except NotFound:
                if track.ended:
                    raise record_lost() from None
            except KvError:
                pass
            else:
                self._take(binding, recorded)
            if not track.missing:
                return
            if time.monotonic() > deadline or self._placement.failure is not None:
                raise self._placement.failure or record_lost()
            await asyncio.sleep(RETRY_SECONDS)

    # ------------------------------------------------------------------------------------ ends

    def close(self) -> None:
        """Ends what still runs, at once."""
        self._placement.close()

    def leave(self) -> None:
        """What still runs runs on, for whoever resumes it."""
        self._placement.leave()


def fresh(
    fleet: Fleet,
    codec: TextCodec | None,
    plan: Plan,
    *,
    request_id: str,
    tenant: bytes,
    worker_wait: float,
    arrival_ns: int,
) -> Generation:
    """A request that nobody has seen before."""
    wake, group, prompt = asyncio.Event(), secrets.token_bytes(16), pack_ids(plan.prompt)
    bindings = [
        Binding(
            new_index(number, request_id, codec, plan, wake),
            submission(number, group, prompt, plan, request_id, tenant, arrival_ns),
        )
        for number in range(plan.n)
    ]
    return Generation(fleet, bindings, wake, worker_wait, arrival_ns)


def new_index(
    number: int, request_id: str, codec: TextCodec | None, plan: Plan, wake: asyncio.Event
) -> Index:
    stopping = plan.stopping
    detokenizer = codec.stream(plan.prompt, plan.skip_special_tokens) if codec else None
    output = Output(detokenizer, stopping.stop, stopping.include_stop_in_output, stopping.min_tokens)
    return Index(number, request_id, plan, output, wake)


def submission(  # noqa: PLR0917 - the fields of a Submit that are not the plan's
    number: int, group: bytes, prompt: bytes, plan: Plan, request_id: str, tenant: bytes, arrival_ns: int
) -> Submission:
    """Index `number` of the request; `prompt` is packed."""
    sampling = pb.SamplingParams()
    sampling.CopyFrom(plan.sampling)
    sampling.seed = mix(plan.seed, number)
    return Submission(
        sequence=sequence_id(group, number, arrival_ns),
        group=group,
        index=number,
        n=plan.n,
        request_id=request_id,
        token_ids=prompt,
        sampling=sampling,
        stopping=plan.stopping,
        logprobs=plan.logprobs,
        prompt_logprobs=plan.prompt_logprobs if number == 0 else 0,
        priority=plan.priority,
        arrival_ns=arrival_ns,
        tenant=tenant,
    )


def record_lost() -> Refusal:
    return Refusal(
        grpc.StatusCode.ABORTED,
        "RECORD_LOST",
        "tokens of the request could not be read again; output is incomplete",
    )
