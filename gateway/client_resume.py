"""What a client does about a call that failed: the request again before its first chunk, the rest of it after that.

Offsets make the delivery exact: a resumed call brings what lies behind them, and of an index that has finished nothing
is handed on twice.
"""

import time
from collections.abc import Callable
from typing import Final

import grpc

from gateway.client_calls import Busy, CallError, Unreachable
from holdfast.v1 import generate_pb2 as pb

OnRetry = Callable[[Unreachable, int, int], None]
OnResume = Callable[[CallError, float], None]

RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 10.0
FIRST_RESUME_SECONDS: Final = 0.1  # doubles
MAX_RESUME_SECONDS: Final = 2.0
_CODE = grpc.StatusCode
# From the transport when they come without a reason: the gateway gives one with every status.
CONNECTION: Final = frozenset({_CODE.UNAVAILABLE, _CODE.CANCELLED, _CODE.INTERNAL, _CODE.UNKNOWN})
RESUMABLE: Final = frozenset({"WORKER_LOST", "SHUTTING_DOWN"})


class Received:
    """How far a request's indexes were handed on."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._n = request.sampling.n if request.sampling.HasField("n") else 1
        self._finished: set[int] = set()
        self._offsets: dict[int, int] = {}

    @property
    def anything(self) -> bool:
        return bool(self._offsets)

    @property
    def everything(self) -> bool:
        """Every index has its finish."""
        return 0 < self._n == len(self._finished)

    def take(self, message: pb.GenerateResponse) -> bool:
        """False for what was handed on before."""
        if message.index in self._finished:
            return False
        self._offsets[message.index] = message.next_offset
        if message.HasField("finish"):
            self._finished.add(message.index)
        return True

    def next_request(self) -> pb.GenerateRequest:
        """The request, for what is missing of it."""
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        for index, offset in sorted(self._offsets.items()):
            request.resume.add(index=index, offset=offset)
        return request


class Tries:
    """Judges failures: each is either raised, or followed by another try after a pause."""

    def __init__(
        self, retries: int, resume_timeout: float, on_retry: OnRetry | None, on_resume: OnResume | None
    ) -> None:
        self._retries = retries
        self._resume_timeout = resume_timeout
        self._on_retry = on_retry
        self._on_resume = on_resume
        self._attempt = 1
        self._give_up: float | None = None  # since the last chunk
        self._pause = FIRST_RESUME_SECONDS

    def went_on(self) -> None:
        """A chunk came."""
        self._give_up, self._pause = None, FIRST_RESUME_SECONDS

    def after(self, error: CallError, begun: bool) -> float:
        """Seconds before the next try; raises `error` when there is none. `begun`: a chunk was handed on."""
        return self._before_resume(error) if begun else self._before_retry(error)

    def _before_retry(self, error: CallError) -> float:
        if not isinstance(error, Unreachable) or self._attempt > self._retries:
            raise error
        self._attempt += 1
        if self._on_retry:
            self._on_retry(error, self._attempt, self._retries + 1)
        return min(error.retry_seconds or RETRY_SECONDS, MAX_RETRY_SECONDS)

    def _before_resume(self, error: CallError) -> float:
        now = time.monotonic()
        first = self._give_up is None
        give_up = self._give_up = now + self._resume_timeout if self._give_up is None else self._give_up
        if not resumable(error) or now >= give_up:
            raise error
        if first and self._on_resume:
            self._on_resume(error, self._resume_timeout)
        pause, self._pause = self._pause, min(2 * self._pause, MAX_RESUME_SECONDS)
        return min(pause, give_up - now)


def resumable(error: CallError) -> bool:
    """Whether the rest of a request may still be had, here or from the gateway that comes next."""
    if isinstance(error, Busy):
        return True  # too many came back at once
    if not error.reason:
        return error.code in CONNECTION
    return error.code is _CODE.UNAVAILABLE or error.reason in RESUMABLE
