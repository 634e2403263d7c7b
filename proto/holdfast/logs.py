"""One log format for every process: pretty on a terminal, one JSON object a line elsewhere, always on stderr.

Keys: timestamp (ISO, UTC), level, process (which of ours), message, then the event's own. Request ids are bound by
the caller with structlog.contextvars. Nothing is logged per token; each process writes one line per request's end.
"""

import logging
import sys
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(process: str, log_format: str = "auto", log_level: str = "info") -> None:
    """Sets structlog up for this process."""
    pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _name(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *(_pretty() if pretty else _json()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[log_level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _name(process: str) -> Processor:
    """Adds the process to every event. Not by a context variable: a new thread begins without them."""

    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return {"process": process, **event}

    return add


def _pretty() -> list[Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _json() -> list[Processor]:
    """Tracebacks without the values of local variables: prompts and keys are among them."""
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
