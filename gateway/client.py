"""The public Python client.

    async with Client("127.0.0.1:50051") as client:
        async for chunk in client.generate("Once upon a time", max_tokens=64):
            print(chunk.text, end="")

`SyncClient` is the same without async. A prompt is text, a list of token ids, or a list of messages
({"role": …, "content": …}). Errors are CallError and its subclasses:

    CallError                  any other status
    ├── InvalidRequest         a field is malformed or out of bounds, or the request can never fit
    ├── Unauthenticated
    ├── Busy                   RESOURCE_EXHAUSTED: try again later
    ├── Unreachable            UNAVAILABLE: nothing was delivered; retried here first, a bounded number of times
    ├── DeadlineExpired
    └── Broken                 the stream ended after its first token, and could not be resumed within a bound
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc

from gateway.client_calls import (
    Broken,
    Busy,
    CallError,
    Chunk,
    DeadlineExpired,
    InvalidRequest,
    Prompt,
    Unauthenticated,
    Unreachable,
    build_request,
    to_chat,
    to_chunk,
    to_error,
)
from gateway.client_resume import OnResume, OnRetry, Received, Tries
from holdfast.v1 import generate_pb2 as pb
from holdfast.v1 import generate_pb2_grpc as pb_grpc

__all__ = [
    "Broken",
    "Busy",
    "CallError",
    "Chunk",
    "Client",
    "DeadlineExpired",
    "InvalidRequest",
    "SyncClient",
    "Unauthenticated",
    "Unreachable",
]

RETRIES: Final = 3
RESUME_SECONDS: Final = 60.0  # a service without a gateway keeps sequences running for as long
OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A gateway that is started again is found soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Client:
    """One channel to a gateway. Usable by many tasks of one event loop."""

    def __init__(self, target: str = "127.0.0.1:50051", api_key: str | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self._stub: Any = pb_grpc.GenerateServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        retries: int = RETRIES,
        resume_timeout: float = RESUME_SECONDS,
        on_retry: OnRetry | None = None,
        on_resume: OnResume | None = None,
        **options: Any,
    ) -> AsyncIterator[Chunk]:
        """Streams chunks. `options` are fields of SamplingParams, StoppingCriteria, ResponseOptions, and
        request_id, model, priority, add_generation_prompt. `timeout` in seconds, for each attempt.

        `on_retry(error, attempt, attempts)` hears of each attempt but the first, before the pause that precedes it:
        why, its number (2, 3, …), and how many there are at most. A stream that breaks after its first chunk is
        resumed, and every token comes once; `on_resume(error, resume_timeout)` hears of the break. Broken is raised
        when no chunk came within `resume_timeout` seconds of it; 0: at once.
        """
        request = build_request(prompt, options)
        request.request_id = request.request_id or secrets.token_hex(16)
        received, tries = Received(request), Tries(retries, resume_timeout, on_retry, on_resume)
        while True:
            try:
                async for message in self._attempt(received.next_request(), timeout):
                    if received.take(message):
                        tries.went_on()
                        yield to_chunk(message)
                return
            except CallError as error:
                if received.everything:
                    return  # only the status was lost
                pause = tries.after(error, received.anything)
            await asyncio.sleep(pause)

    async def _attempt(
        self, request: pb.GenerateRequest, timeout: float | None
    ) -> AsyncIterator[pb.GenerateResponse]:
        call = self._stub.Generate(request, timeout=timeout, metadata=self._metadata)
        shown = bool(request.resume)
        try:
            async for message in call:
                shown = True
                yield message
        except grpc.aio.AioRpcError as error:
            raise await to_error(error, call, shown) from None
        finally:
            call.cancel()  # a caller that stops listening stops the generation; a finished call does not mind

    async def tokenize(
        self, prompt: str | Sequence[Mapping[str, str]], *, model: str = "", add_special_tokens: bool = True
    ) -> list[int]:
        """The token ids that `generate` would use."""
        request = pb.TokenizeRequest(model=model, add_special_tokens=add_special_tokens)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.chat.CopyFrom(to_chat(prompt))
        return list((await self._unary(self._stub.Tokenize, request)).token_ids)

    async def detokenize(
        self, ids: Sequence[int], *, model: str = "", skip_special_tokens: bool = True
    ) -> str:
        request = pb.DetokenizeRequest(model=model, token_ids=ids, skip_special_tokens=skip_special_tokens)
        return str((await self._unary(self._stub.Detokenize, request)).text)

    async def models(self) -> list[pb.Model]:
        """The models that a worker serves now, all pages."""
        found: list[pb.Model] = []
        request = pb.ListModelsRequest()
        while True:
            reply = await self._unary(self._stub.ListModels, request)
            found.extend(reply.models)
            if not reply.next_page_token:
                return found
            request.page_token = reply.next_page_token

    async def _unary(self, method: Any, request: Any) -> Any:
        call = method(request, metadata=self._metadata)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise await to_error(error, call, shown=False) from None

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class SyncClient:
    """`Client` for code without an event loop; for one thread at a time."""

    def __init__(self, target: str = "127.0.0.1:50051", api_key: str | None = None) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._connect(target, api_key))

    @staticmethod
    async def _connect(target: str, api_key: str | None) -> Client:
        return Client(target, api_key)

    def generate(self, prompt: Prompt, **options: Any) -> Iterator[Chunk]:
        chunks = self._client.generate(prompt, **options)
        try:
            while (chunk := self._runner.run(advance(chunks))) is not None:
                yield chunk
        finally:
            self._runner.run(stop(chunks))

    def tokenize(self, prompt: str | Sequence[Mapping[str, str]], **options: Any) -> list[int]:
        return self._runner.run(self._client.tokenize(prompt, **options))

    def detokenize(self, ids: Sequence[int], **options: Any) -> str:
        return self._runner.run(self._client.detokenize(ids, **options))

    def models(self) -> list[pb.Model]:
        return self._runner.run(self._client.models())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def advance(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)


async def stop(chunks: Any) -> None:
    await chunks.aclose()
