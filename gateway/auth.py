"""Who calls: API keys, tenants, and the cache namespace of a tenant.

The key file has a line `tenant sha256hex` for each key; `#` begins a comment. A tenant may have several keys. Without
a file there is one tenant, and the server listens on loopback only.

The namespace is derived from the tenant's name alone, so that every gateway of one service finds the same cache after
any restart. It is no secret and needs none: it travels inside the service only, and a client never chooses it.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc

from gateway.errors import Refusal, to_status

NO_TENANT: Final = bytes(32)  # the namespace of the only tenant of a service without keys
CONTEXT: Final = b"holdfast cache namespace 1"
HEALTH: Final = "/grpc.health.v1.Health/"
LINE: Final = re.compile(r"([A-Za-z0-9._-]{1,64})\s+([0-9a-fA-F]{64})", re.ASCII)

Metadata = Iterable[tuple[str, str | bytes]]


class KeyFileError(ValueError):
    """The key file cannot be used; the message names the line."""


def namespace(tenant: str) -> bytes:
    """32 bytes; the same for the same tenant, everywhere."""
    return hmac.new(CONTEXT, tenant.encode(), hashlib.sha256).digest()


class Keys:
    """The known keys; an empty one lets everybody in as one tenant."""

    def __init__(self, tenants: Sequence[tuple[str, bytes]] = ()) -> None:
        self._tenants = tuple(tenants)

    @classmethod
    def from_file(cls, path: Path) -> "Keys":
        """KeyFileError unless every line is understood and there is at least one key."""
        try:
            lines = path.read_text("utf8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read {path}: {error}") from None
        found = [parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
        tenants = [item for item in found if item]
        if not tenants:
            raise KeyFileError(f"{path}: no keys")
        if len({digest for _, digest in tenants}) < len(tenants):
            raise KeyFileError(f"{path}: the same key stands twice")
        return cls(tenants)

    @property
    def required(self) -> bool:
        return bool(self._tenants)

    def tenant(self, metadata: Metadata) -> str | None:
        """The caller's tenant, "" when no keys are required; None: not let in. Compares with every key."""
        if not self._tenants:
            return ""
        digest = hashlib.sha256(bearer(metadata)).digest()
        found = None
        for tenant, known in self._tenants:
            if hmac.compare_digest(digest, known):
                found = tenant
        return found

    def namespace(self, tenant: str) -> bytes:
        return namespace(tenant) if self._tenants else NO_TENANT


def parse(line: str, where: str) -> tuple[str, bytes] | None:
    """(tenant, digest) of one line; None for a comment."""
    text = line.split("#", 1)[0].strip()
    if not text:
        return None
    match = LINE.fullmatch(text)
    if not match:
        raise KeyFileError(f"{where}: expected `tenant sha256hex`")
    return match[1], bytes.fromhex(match[2])


def bearer(metadata: Metadata) -> bytes:
    """The key of `authorization: Bearer KEY`, b"" without one."""
    values = [value for name, value in metadata if name == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        return b""
    scheme, _, key = values[0].partition(" ")
    return key.strip().encode() if scheme.lower() == "bearer" else b""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets nothing but health checks through without a key, known methods or not."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":  # not subscriptable at run time
        metadata = handler_call_details.invocation_metadata or ()
        if handler_call_details.method.startswith(HEALTH) or self._keys.tenant(metadata) is not None:
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(refuse)  # serves calls of every shape


async def refuse(_: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
    refusal = Refusal(
        grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "a valid `authorization: Bearer KEY` is required"
    )
    await context.abort_with_status(to_status(refusal))
