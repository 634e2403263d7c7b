"""The canonical log line: one per request's end, with everything one wants to know about it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from gateway.index import Index
from kvmanager.messages import FinishReason


@dataclass(slots=True)
class RequestLog:
    """Fill it as the request goes on, then `write` once."""

    tenant: str
    began: float = field(default_factory=time.monotonic)
    status: str = "OK"
    reason: str = ""
    prompt_tokens: int = 0
    indexes: Sequence[Index] = ()

    def write(self) -> None:
        """The request id is bound by contextvars."""
        first = [index.first_at for index in self.indexes if index.first_at]
        structlog.get_logger().info(
            "request ended",
            tenant=self.tenant,
            status=self.status,
            reason=self.reason,
            finish=[FinishReason(index.finish).name for index in self.indexes],
            prompt_tokens=self.prompt_tokens,
            cached_tokens=sum(index.track.cached_tokens for index in self.indexes),
            completion_tokens=sum(index.output.count for index in self.indexes),
            queue_s=round(max((index.track.queue_seconds for index in self.indexes), default=0.0), 4),
            ttft_s=round(min(first) - self.began, 4) if first else None,
            decode_s=round(max(index.last_at for index in self.indexes) - min(first), 4) if first else None,
            total_s=round(time.monotonic() - self.began, 4),
        )
