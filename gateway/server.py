"""The gateway process: its parts wired together, the listening port, health, reflection, and the way down.

Everything starts in any order: the port is open at once, health says NOT_SERVING until a worker is ready, and
requests wait for one within their bound.
"""

import asyncio
from typing import Final

import grpc
import structlog
import zmq.asyncio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.auth import AuthInterceptor, Keys
from gateway.bounds import MAX_TEXT_BYTES
from gateway.config import GatewaySettings
from gateway.fleet import Fleet
from gateway.malformed import MalformedInterceptor
from gateway.models import ServedModel
from gateway.service import GenerateService
from holdfast.v1 import generate_pb2, generate_pb2_grpc
from kvmanager.client import AsyncDaemonClient

SERVICE: Final = generate_pb2.DESCRIPTOR.services_by_name["GenerateService"].full_name
HEALTH_SECONDS: Final = 0.25
LINGER_SECONDS: Final = 0.1  # what was on its way at SIGTERM is still refused in our words
LAST_SECONDS: Final = 0.5  # for last messages and small calls to leave
SMALL_CALLS: Final = 64  # beside Generate: health, Tokenize …; and room to refuse Generate in our own words
_Status = health_pb2.HealthCheckResponse

OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 * 2**20 + MAX_TEXT_BYTES),
    ("grpc.max_send_message_length", 64 * 2**20),  # prompt_logprobs of a long prompt
    ("grpc.max_metadata_size", 16 * 2**10),
    ("grpc.so_reuseport", 0),  # a second gateway on the port is an error, not half of the requests
    # Clients that ping through a long prefill must not be dropped.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client that vanished without a word is found, and its blocks freed.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class StartError(RuntimeError):
    """The gateway cannot start; the message says what to change."""


class Gateway:
    """Build within a running event loop; `start`, then `stop` once."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        keys = Keys.from_file(settings.api_keys) if settings.api_keys else Keys()
        self._model = ServedModel.from_folder(settings.model, settings.model_name)
        self._context = zmq.asyncio.Context()
        self._daemon = AsyncDaemonClient(self._context, settings.sockets)
        self.fleet = Fleet(self._context, self._daemon, settings.model_name)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # re-exported without saying so
        self._tasks: list[asyncio.Task[None]] = []
        self._server = self._build_server(keys)
        self.port = 0

    def _build_server(self, keys: Keys) -> grpc.aio.Server:
        settings = self._settings
        server = grpc.aio.server(
            interceptors=[AuthInterceptor(keys), MalformedInterceptor(SERVICE)],
            options=OPTIONS,
            maximum_concurrent_rpcs=settings.max_concurrent + SMALL_CALLS,
        )
        service = GenerateService(
            self.fleet,
            self._model,
            keys,
            worker_wait=settings.worker_wait,
            max_concurrent=settings.max_concurrent,
            max_queue=settings.max_queue,
        )
        self._doors = service.doors
        generate_pb2_grpc.add_GenerateServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    async def start(self) -> None:
        """Listens and looks for workers; StartError if the port cannot be had."""
        try:
            self.port = self._server.add_insecure_port(self._settings.address)
        except RuntimeError:
            raise StartError(f"cannot listen on {self._settings.address}: is the port in use?") from None
        await self._tell_health(_Status.NOT_SERVING)
        await self._server.start()
        self._tasks = [asyncio.create_task(self.fleet.run()), asyncio.create_task(self._watch_health())]
        structlog.get_logger().info(
            "gateway listens", host=self._settings.host, port=self.port, model=self._settings.model_name
        )

    async def broken(self) -> None:
        """Returns never; raises what ended one of the tasks that must not end."""
        await asyncio.gather(*self._tasks)

    async def _watch_health(self) -> None:
        """Health means progress: the daemon answers, and a worker advances or is idle."""
        told = False
        while True:
            if self.fleet.serving != told:
                told = not told
                await self._tell_health(_Status.SERVING if told else _Status.NOT_SERVING)
                structlog.get_logger().info("health", status="SERVING" if told else "NOT_SERVING")
            await asyncio.sleep(HEALTH_SECONDS)

    async def _tell_health(self, status: _Status.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self) -> None:
        """NOT_SERVING at once and no new requests; running streams end within the grace, or by us after it.

        Only then gRPC's server goes: what meets its end would be told nothing but CANCELLED.
        """
        await self._health.enter_graceful_shutdown()
        structlog.get_logger().info("gateway stops", sequences=self.fleet.sequences)
        await asyncio.gather(self._doors.close(self._settings.shutdown_grace), asyncio.sleep(LINGER_SECONDS))
        await self._server.stop(LAST_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.fleet.close()
        await self._daemon.close()
        if self._model.codec:
            self._model.codec.close()
        self._context.term()
