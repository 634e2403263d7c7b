"""A request whose stream is taken up again, by this gateway or another one: rebuilt from the daemon's records.

Everything that decides tokens comes from the records; the client's message must have the same prompt and n, and brings
what a record does not hold: stop strings and the form of the responses. Detokenizer and stop strings are replayed
from token 0, so that what follows the client's offsets is what an undisturbed stream would have sent.

A record that ended by a cancel (the client's connection broke, its deadline passed) is gone on with by a new sequence
that begins with its tokens. An index that is not found beside others was never begun, or, if the client has tokens of
it, has ended and was forgotten: then nothing is sent of it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import grpc

from gateway import validate
from gateway.errors import Refusal, invalid, unavailable
from gateway.fleet import Fleet
from gateway.generation import Generation, new_index, submission
from gateway.index import Index
from gateway.membership import Found, Recorded
from gateway.placement import Binding
from gateway.routing import WorkerKey
from gateway.tokenizer import TextCodec
from gateway.validate import Plan
from gateway.workers import pack_ids
from holdfast.mix import unmix
from holdfast.v1 import generate_pb2 as pb
from kvmanager.errors import KvError, NotFound
from kvmanager.messages import FinishReason

RETRY_SECONDS: Final = 0.2  # between questions to a daemon that is away


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a request: its newest record of each index, by index."""

    by_index: Mapping[int, Found]

    @property
    def one(self) -> Found:
        """Any of them."""
        return next(iter(self.by_index.values()))

    @property
    def arrival_ns(self) -> int:
        """Of the request: sequences that replaced cancelled ones say a little more."""
        return min(found.submitted.arrival_ns for found in self.by_index.values())

    @property
    def sessions(self) -> set[str]:
        """Of the workers that run what has not ended."""
        return {found.session for found in self.by_index.values() if found.session and not found.finished}


def newest(records: Sequence[Found]) -> Remains:
    """Of the group that was submitted last, as one id may have been used again; of each index the last sequence."""
    latest = max(records, key=lambda found: found.submitted.arrival_ns)
    group = [found for found in records if found.submitted.group == latest.submitted.group]
    group.sort(key=lambda found: found.submitted.arrival_ns)
    return Remains({found.submitted.index: found for found in group})


async def find(fleet: Fleet, request_id: str, tenant: bytes, patience: float) -> Remains:
    """Refusal: NOT_FOUND for an unknown request, UNAVAILABLE if the daemon does not answer within `patience` s."""
    give_up = time.monotonic() + patience
    while True:
        try:
            records = await fleet.find(request_id, tenant)
        except KvError:
            if time.monotonic() > give_up:
                raise unavailable("RECORDS_UNAVAILABLE", "the request's records cannot be read now") from None
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if not records:
                raise unknown_request()
            return newest(records)


def complete(request: pb.GenerateRequest, prompt: Sequence[int], remains: Remains) -> Plan:
    """The plan of the request that is resumed; Refusal if the client's message is of another one."""
    found = remains.one.submitted
    if pack_ids(prompt) != found.token_ids:
        raise invalid("prompt", "is not the prompt of the request that is resumed", "RESUME_MISMATCH")
    if validate.num_indexes(request) != found.n:
        raise invalid("sampling.n", f"the request that is resumed has {found.n}", "RESUME_MISMATCH")
    stopping, sampling = pb.StoppingCriteria(), pb.SamplingParams()
    stopping.CopyFrom(found.stopping)
    stopping.ClearField("stop")
    stopping.stop.extend(request.stopping.stop)
    stopping.include_stop_in_output = request.stopping.include_stop_in_output
    sampling.CopyFrom(found.sampling)
    sampling.seed = unmix(found.sampling.seed, found.index)
    response = request.response
    return Plan(
        prompt=prompt,
        sampling=sampling,
        stopping=stopping,
        n=found.n,
        seed=sampling.seed,
        logprobs=found.logprobs,
        prompt_logprobs=found.prompt_logprobs,
        skip_special_tokens=validate.skips_special_tokens(response),
        stream_interval=validate.stream_interval(response),
        priority=found.priority,
    )


class Rebuilding:
    """Makes the generation of a request that is resumed."""

    def __init__(
        self, fleet: Fleet, codec: TextCodec | None, request: pb.GenerateRequest, plan: Plan, remains: Remains
    ) -> None:
        self._fleet = fleet
        self._codec = codec
        self._request = request
        self._plan = plan
        self._remains = remains
        self._wake = asyncio.Event()

    async def generation(self, worker_wait: float, arrival_ns: int) -> Generation:
        """Refusal if an offset lies beyond the record, or the record went meanwhile. Nothing is submitted yet."""
        bindings = []
        offsets = {entry.index: (place, entry.offset) for place, entry in enumerate(self._request.resume)}
        for number in range(self._plan.n):
            place, offset = offsets.get(number, (0, 0))
            found = self._remains.by_index.get(number)
            if found is not None:
                bindings.append(await self._found(found, offset, f"resume[{place}].offset"))
            elif not offset:
                bindings.append(self._never_begun(number))
        return Generation(self._fleet, bindings, self._wake, worker_wait, arrival_ns)

    def _never_begun(self, number: int) -> Binding:
        """Under the id it had: its worker may know of it, though the daemon does not."""
        given, plan = self._remains.one.submitted, self._plan
        again = submission(
            number,
            given.group,
            given.token_ids,
            plan,
            given.request_id,
            given.tenant,
            self._remains.arrival_ns,
        )
        return Binding(self._index(number), again, tries=1)

    async def _found(self, found: Found, offset: int, field: str) -> Binding:
        recorded = await self._record(found)
        if offset > len(recorded.token_ids):
            bound = f"{offset} is more than the {len(recorded.token_ids)} tokens of the index"
            raise invalid(field, bound, value=offset)
        index = self._index(found.submitted.index)
        by_token = recorded.finish is FinishReason.STOP and recorded.stop_token_id != 0
        await index.replay(recorded.token_ids[:offset], by_token and offset == len(recorded.token_ids))
        again = replace(found.submitted, output_ids=pack_ids(recorded.token_ids))
        binding = Binding(index, again, tries=1)
        index.track.feed(recorded.first, recorded.token_ids)
        cancelled = recorded.finish is FinishReason.CANCELLED
        finish = FinishReason.NONE if cancelled else recorded.finish
        index.track.learn(recorded.recorded_len, finish, recorded.stop_token_id or None)
        if cancelled:
            binding.renew()
        return binding

    def _index(self, number: int) -> Index:
        return new_index(number, self._request.request_id, self._codec, self._plan, self._wake)

    async def _record(self, found: Found) -> Recorded:
        try:
            return await self._fleet.record(found.submitted.sequence, len(self._plan.prompt))
        except NotFound:
            raise unknown_request() from None
        except KvError:
            raise unavailable("RECORDS_UNAVAILABLE", "the request's records cannot be read now") from None


async def owner(fleet: Fleet, remains: Remains, patience: float) -> WorkerKey | None:
    """The worker that runs what has not ended; None if nothing runs, or its worker is gone."""
    if not remains.sessions:
        return None
    if not fleet.members.workers:
        await fleet.change_within(patience)
    workers = filter(None, map(fleet.members.of_session, sorted(remains.sessions)))
    return next((worker.key for worker in workers), None)


def unknown_request() -> Refusal:
    return Refusal(
        grpc.StatusCode.NOT_FOUND,
        "REQUEST_UNKNOWN",
        "request_id: no such request: never begun, or ended longer ago than records are kept",
        {"field": "request_id"},
    )
