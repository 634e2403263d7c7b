"""One request from Submit to its last message: n indexes on one worker, and what happens when that worker goes.

Before anything was shown, a lost worker costs time only: the request is submitted again, as new sequences, with the
same seeds. After that, what the daemon has recorded is still delivered; then the request ends ABORTED, unless the
record holds its end. (Another worker's adoption of a running sequence is not built yet.)
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Final

import grpc

from gateway.errors import Refusal, from_wire, internal, unavailable, worker_lost
from gateway.fleet import Fleet
from gateway.index import Index
from gateway.output import Output
from gateway.routing import Worker, WorkerKey
from gateway.tokenizer import TextCodec
from gateway.validate import Plan
from gateway.workers import Submission, pack_ids
from holdfast.mix import mix
from holdfast.v1 import generate_pb2 as pb
from kvmanager.errors import Fenced, KvError, NotFound, Unavailable
from kvmanager.messages import FinishReason

WORKER_GONE: Final = frozenset({Unavailable.code, Fenced.code})
GENUINE: Final = frozenset({FinishReason.STOP, FinishReason.EOS, FinishReason.LENGTH})
RETRY_SECONDS: Final = 0.2  # between attempts on the same worker, and reads of the record


class Generation:
    """Call `start`, then `next` until it gives nothing; `close` in any case."""

    def __init__(
        self,
        fleet: Fleet,
        codec: TextCodec | None,
        plan: Plan,
        *,
        request_id: str,
        tenant: bytes,
        worker_wait: float,
        arrival_ns: int,
    ) -> None:
        self._fleet = fleet
        self._plan = plan
        self._request_id = request_id
        self._tenant = tenant
        self._worker_wait = worker_wait
        self._arrival_ns = arrival_ns
        self._wake = asyncio.Event()
        self._avoid: set[WorkerKey] = set()
        self._give_up: float | None = None
        self._prompt = pack_ids(tuple(plan.prompt))
        self.indexes = [self._index(number, codec) for number in range(plan.n)]
        self._open = list(self.indexes)

    def _index(self, number: int, codec: TextCodec | None) -> Index:
        plan, stopping = self._plan, self._plan.stopping
        detokenizer = codec.stream(plan.prompt, plan.skip_special_tokens) if codec else None
        output = Output(detokenizer, stopping.stop, stopping.include_stop_in_output, stopping.min_tokens)
        return Index(number, self._request_id, plan, output, self._wake)

    @property
    def waiting(self) -> int:
        """Indexes without a first token."""
        return sum(not index.first_at for index in self._open)

    @property
    def shown(self) -> bool:
        return any(index.output.count for index in self.indexes)

    # ------------------------------------------------------------------------------------ submit

    async def start(self, worker: Worker) -> None:
        """Submits every index to `worker`, or to another if it is gone; Refusal UNAVAILABLE without any."""
        if not self._submit(worker):
            await self._resubmit()

    def _submit(self, worker: Worker) -> bool:
        group = secrets.token_bytes(16)
        self._avoid.add(worker.key)
        for index in self._open:
            index.reset(secrets.token_bytes(16))
        if self._plan.beam_width > 1:  # one search gives them all, at its end
            return self._submit_to(worker, group, self._open)
        return all(self._submit_to(worker, group, [index]) for index in self._open)

    def _submit_to(self, worker: Worker, group: bytes, indexes: Sequence[Index]) -> bool:
        plan, index = self._plan, indexes[0]
        sampling = pb.SamplingParams()
        sampling.CopyFrom(plan.sampling)
        sampling.seed = mix(plan.seed, index.number)
        submission = Submission(
            sequence=index.sequence,
            group=group,
            index=index.number,
            n=plan.n,
            request_id=self._request_id,
            token_ids=self._prompt,
            sampling=sampling,
            stopping=plan.stopping,
            logprobs=plan.logprobs,
            prompt_logprobs=plan.prompt_logprobs if index.number == 0 else 0,
            priority=plan.priority,
            arrival_ns=self._arrival_ns,
            tenant=self._tenant,
            hypotheses=[one.sequence for one in indexes] if plan.beam_width > 1 else (),
        )
        return self._fleet.submit(worker.key, submission, {one.sequence: one for one in indexes})

    async def _resubmit(self) -> None:
        """To another worker within `worker_wait` of the first loss; an avoided one only if there is no other."""
        self._give_up = self._give_up or time.monotonic() + self._worker_wait
        while True:
            self._cancel_open()
            picked = await self._fleet.pick(self._avoid, self._give_up - time.monotonic())
            if picked is None or time.monotonic() > self._give_up:
                raise unavailable("NO_WORKER", "no worker took the request in time")
            if picked[0].key in self._avoid:
                await asyncio.sleep(RETRY_SECONDS)
            if self._submit(picked[0]):
                return

    def _cancel_open(self) -> None:
        for index in self._open:
            self._fleet.cancel(index.sequence, FinishReason.CANCELLED)

    # ------------------------------------------------------------------------------------ stream

    async def next(self) -> list[pb.GenerateResponse]:
        """The messages that are due, in each index's order; nothing once every index is finished.

        Raises Refusal when the request fails as a whole.
        """
        while self._open:
            self._wake.clear()
            await self._mend()
            found = [message for index in self._open for message in index.drain(self._arrival_ns / 1e9)]
            self._settle()
            if found:
                return found
            if any(index.doomed for index in self._open):
                raise worker_lost()
            await self._wake.wait()
        return []

    def _settle(self) -> None:
        """Lets go of finished indexes; a worker whose index ended by a stop string is told."""
        for index in [index for index in self._open if index.finish]:
            self._open.remove(index)
            if index.track.final is None:
                self._fleet.cancel(index.sequence, FinishReason.STOP)
            else:
                self._fleet.forget(index.sequence)
            if index.finish is FinishReason.ERROR and self._plan.n == 1:
                raise internal()

    async def _mend(self) -> None:
        for index in self._open:
            if index.rejection and index.rejection.code not in WORKER_GONE:
                raise from_wire(index.rejection.code, index.rejection.details)
        gone = [index for index in self._open if index.speechless]
        if gone and not self.shown:
            await self._resubmit()
            return
        for index in gone:
            await self._last_words(index)
        for index in self._open:
            if index.stale:
                await self._compare(index)
            if index.track.missing:
                await self._read(index)

    async def _last_words(self, index: Index) -> None:
        """What the record holds of a sequence whose worker is gone: its tokens, perhaps its end."""
        if index.doomed:
            return
        try:
            recorded = await self._fleet.record(index.sequence, index.track.end)
        except KvError:
            index.doomed = True
            return
        finish = recorded.finish if recorded.finish in GENUINE else FinishReason.NONE
        index.track.learn(recorded.recorded_len, finish, recorded.stop_token_id or None)
        index.doomed = index.track.final is None

    async def _compare(self, index: Index) -> None:
        """After a long silence: whether the record is ahead of what was heard."""
        index.stale = False
        try:
            recorded = await self._fleet.record(index.sequence, index.track.end)
        except KvError:
            return  # still queued, or the daemon is away: the next tick asks again
        index.track.learn(recorded.recorded_len, recorded.finish, recorded.stop_token_id or None)

    async def _read(self, index: Index) -> None:
        """Fills the track from the record; waits while the daemon is away, up to `worker_wait`."""
        deadline = time.monotonic() + self._worker_wait
        while True:
            try:
                recorded = await self._fleet.record(index.sequence, index.track.end)
            except NotFound:
                raise record_lost() from None
            except KvError:
                recorded = None
            if recorded is not None:
                index.track.feed(recorded.first, recorded.token_ids)
            if not index.track.missing:
                return
            if time.monotonic() > deadline:
                raise record_lost()
            await asyncio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Ends what still runs, at once."""
        self._cancel_open()
        self._open = []


def record_lost() -> Refusal:
    return Refusal(
        grpc.StatusCode.ABORTED,
        "RECORD_LOST",
        "tokens of the request could not be read again; output is incomplete",
    )
