"""Requests that are no protobuf: INVALID_ARGUMENT in our own words, not the parser's."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from gateway.errors import Refusal, to_status

MALFORMED: Final = object()


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of one service whose requests are single messages."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":  # not subscriptable at run time
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        build = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
        return build(checked(behaviour), parser(handler.request_deserializer), handler.response_serializer)


def parser(parse: Any) -> Callable[[bytes], Any]:
    """`parse`, but with MALFORMED for what it cannot read."""

    def parsed(body: bytes) -> Any:
        try:
            return parse(body)
        except DecodeError:
            return MALFORMED

    return parsed


def checked(behaviour: Any) -> Any:
    """`behaviour`, called with well-formed requests only."""

    async def call(request: Any, context: Any) -> Any:
        if request is not MALFORMED:
            return await behaviour(request, context)
        refusal = Refusal(
            grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "the request is not a well-formed message"
        )
        return await context.abort_with_status(to_status(refusal))

    return call
