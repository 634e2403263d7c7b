"""The gRPC service: one coroutine per call, from request to status. What it calls raises Refusal; here it is told."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import structlog
from structlog.contextvars import bind_contextvars

from gateway import bounds, resume, validate
from gateway.auth import Keys
from gateway.calls import Call, Calls
from gateway.doors import Doors, Visit
from gateway.errors import Refusal, internal, invalid, to_status, unavailable
from gateway.fleet import Fleet
from gateway.generation import fresh
from gateway.models import ServedModel, page
from gateway.requestlog import RequestLog
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as pb_grpc

CLOCK_SLACK: Final = 0.05  # seconds; gRPC ends a call by its own clock, a moment early

Q = TypeVar("Q")
R = TypeVar("R")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GenerateService(pb_grpc.GenerateServiceServicer):
    """Serves one model over one fleet."""

    def __init__(
        self,
        fleet: Fleet,
        model: ServedModel,
        keys: Keys,
        *,
        worker_wait: float,
        max_concurrent: int,
        max_queue: int,
    ) -> None:
        self._fleet = fleet
        self._model = model
        self._keys = keys
        self._worker_wait = worker_wait
        self._calls = Calls(max_concurrent, max_queue)
        self.doors = Doors()

    # ------------------------------------------------------------------------------------ Generate

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Streams through `context.write`, so that a cancelled call ends here and not in a generator's shadow."""
        arrival_ns = time.monotonic_ns()
        remaining = context.time_remaining()
        log = RequestLog(self._keys.tenant(context.invocation_metadata() or ()) or "")
        try:
            async with told(context, log), self.doors.visit() as visit:
                await self._generate(request, context, log, arrival_ns, visit)
        except asyncio.CancelledError:
            late = remaining is not None and time.monotonic() - arrival_ns / 1e9 > remaining - CLOCK_SLACK
            log.status = "DEADLINE_EXCEEDED" if late else "CANCELLED"
            raise
        finally:
            log.write()

    async def _generate(
        self, request: pb.GenerateRequest, context: Context, log: RequestLog, arrival_ns: int, visit: Visit
    ) -> None:
        validate.check_name("request_id", request.request_id)
        request_id = request.request_id or secrets.token_hex(16)
        bind_contextvars(request_id=request_id)
        validate.check_request(request)
        self._model.check_name(request.model)
        call = Call((log.tenant, request_id), visit, validate.num_indexes(request))
        (self._calls.enter_to_resume if request.resume else self._calls.enter)(call)
        try:
            await (self._resume if request.resume else self._begin)(request, call, log, arrival_ns)
            assert call.generation is not None
            while messages := await call.generation.next():
                visit.heard = True
                for message in messages:
                    await context.write(message)
        finally:
            self._calls.leave(call)
            end(call, resumable=visit.heard or bool(request.resume))

    async def _begin(self, request: pb.GenerateRequest, call: Call, log: RequestLog, arrival_ns: int) -> None:
        """Gives the call its generation: tokenized, a worker found, validated against its model, submitted."""
        prompt = await self._model.prompt(request)
        log.prompt_tokens = len(prompt)
        picked = await self._fleet.pick((), self._worker_wait)
        if picked is None:
            raise unavailable("NO_WORKER", "no worker serves the model now")
        worker, pool = picked
        limits = validate.Limits(pool.max_model_len, pool.vocab_size, pool.tokens)
        tenant, request_id = call.key
        generation = fresh(
            self._fleet,
            self._model.codec,
            validate.complete(request, prompt, limits),
            request_id=request_id,
            tenant=self._keys.namespace(tenant),
            worker_wait=self._worker_wait,
            arrival_ns=arrival_ns,
        )
        call.generation, log.indexes = generation, generation.indexes
        generation.place(worker.key)

    async def _resume(
        self, request: pb.GenerateRequest, call: Call, log: RequestLog, arrival_ns: int
    ) -> None:
        """As `_begin`, from the request's records. Whoever has the request keeps it until all of that is done."""
        fleet, patience, (tenant, request_id) = self._fleet, self._worker_wait, call.key
        prompt = await self._model.prompt(request)
        log.prompt_tokens = len(prompt)
        remains = await resume.find(fleet, request_id, self._keys.namespace(tenant), patience)
        plan = resume.complete(request, prompt, remains)
        rebuilding = resume.Rebuilding(fleet, self._model.codec, request, plan, remains)
        generation = await rebuilding.generation(patience, arrival_ns)
        worker = await resume.owner(fleet, remains, patience)
        self._calls.take_over(call)
        call.generation, log.indexes = generation, generation.indexes
        if worker is None:
            generation.scatter()
        else:
            generation.place(worker)

    # ------------------------------------------------------------------------------------ the small calls

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        return await self._unary(context, self._tokenize, request)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:  # noqa: N802
        return await self._unary(context, self._detokenize, request)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        return await self._unary(context, self._list_models, request)

    async def _unary(self, context: Context, answer: Callable[[Q], Awaitable[R]], request: Q) -> R:
        log = RequestLog(self._keys.tenant(context.invocation_metadata() or ()) or "")
        async with told(context, log):
            self.doors.check()
            return await answer(request)
        raise AssertionError("told() ends a failed call")

    async def _tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        validate.check_model_name(request.model)
        self._model.check_name(request.model)
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        match request.WhichOneof("input"):
            case "text":
                validate.check_text("text", request.text)
                ids = await self._model.encode_text(request.text, special)
            case "chat":
                validate.check_chat(request.chat)
                ids = await self._model.encode_chat(request.chat)
            case _:
                raise invalid("input", "exactly one of text and chat is required", "PROMPT_MISSING")
        return pb.TokenizeResponse(token_ids=ids)

    async def _detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        validate.check_model_name(request.model)
        self._model.check_name(request.model)
        codec = self._model.text_codec()
        if len(request.token_ids) > bounds.MAX_IDS:
            raise invalid("token_ids", f"at most {bounds.MAX_IDS} ids, got {len(request.token_ids)}")
        known = [codec.vocab_size, *(model.vocab_size for model in self._model.listed(self._fleet.members))]
        validate.check_ids("token_ids", request.token_ids, max(known))
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        return pb.DetokenizeResponse(text=await codec.decode_long(request.token_ids, skip))

    async def _list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        return page(self._model.listed(self._fleet.members), request)


def end(call: Call, *, resumable: bool) -> None:
    """Ends what the call still runs; but when it was shown out and its client can resume elsewhere, that runs on."""
    if call.generation is None:
        return
    if resumable and call.visit.refusal is not None:
        call.generation.leave()
    else:
        call.generation.close()


@asynccontextmanager
async def told(context: Context, log: RequestLog) -> AsyncIterator[None]:
    """Ends the call with the status of what went wrong inside; our own faults as INTERNAL, with a traceback here."""
    try:
        yield
        return
    except Refusal as error:
        refusal = error
    except Exception:  # noqa: BLE001 - the last catch of a call: logged, and told as INTERNAL
        structlog.get_logger().exception("internal error")
        refusal = internal()
    log.status, log.reason = refusal.code.name, refusal.reason
    await context.abort_with_status(to_status(refusal))
