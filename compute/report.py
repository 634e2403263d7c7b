"""The canonical log line: one for each request's end."""

from typing import Any

import structlog

from compute.scheduler import Ended

log = structlog.get_logger()


def log_end(ended: Ended) -> None:
    """Errors as warnings; figures that never came so far are left out."""
    request = ended.request
    figures = {
        "queue_s": ended.queue_s,
        "ttft_s": ended.ttft_s,
        "decode_s": ended.decode_s,
        "tokens_per_s": rate(ended),
    }
    fields: dict[str, Any] = {name: round(value, 4) for name, value in figures.items() if value is not None}
    if ended.error:
        fields["error"] = ended.error
    write = log.warning if ended.error else log.info
    write(
        "request ended",
        request_id=request.request_id,
        sequence=request.sequence.hex()[:8],
        reason=ended.reason,
        prompt_tokens=len(request.prompt),
        cached_tokens=ended.cached_tokens,
        output_tokens=ended.output_tokens,
        preemptions=ended.preemptions,
        **fields,
    )


def rate(ended: Ended) -> float | None:
    """Tokens a second after the first one."""
    if not ended.decode_s or ended.output_tokens < 2:
        return None
    return (ended.output_tokens - 1) / ended.decode_s
