"""The keeper's log lines, in the form of holdfast.logs but from the standard library alone."""

import json
import sys
import time
from typing import Any, Final

LEVELS: Final = ("debug", "info", "warning", "error")


class Log:
    """One line an event on stderr: pretty on a terminal, else JSON with the keys of every other process."""

    def __init__(self, process: str, log_format: str = "auto", log_level: str = "info") -> None:
        self._process = process
        self._pretty = log_format == "pretty" or (log_format == "auto" and sys.stderr.isatty())
        self._least = LEVELS.index(log_level)

    def info(self, message: str, **fields: Any) -> None:
        self._write("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._write("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, Any]) -> None:
        if LEVELS.index(level) < self._least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        fields = {"process": self._process, **fields}
        if self._pretty:
            tail = " ".join(f"{key}={value}" for key, value in fields.items())
            line = f"{stamp} [{level:<8}] {message:<30} {tail}"
        else:
            line = json.dumps({**fields, "level": level, "timestamp": stamp, "message": message})
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
