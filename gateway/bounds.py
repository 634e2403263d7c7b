"""The bounds of generate.proto's scalar fields, as data: one row a field. `validate` judges by them, tests read them.

A row's `default` stands for an unset `optional` field. NaN and infinities are outside of every range.
"""

import re
from dataclasses import dataclass
from typing import Final

from gateway.errors import invalid

MAX_TEXT_BYTES: Final = 2**20
MAX_MESSAGES: Final = 1024
MAX_ROLE_CHARACTERS: Final = 64
MAX_STOPS: Final = 16
MAX_STOP_BYTES: Final = 256
MAX_STOP_IDS: Final = 64
MAX_BIASES: Final = 1024
MAX_RESUMES: Final = 64
MAX_IDS: Final = 2**20  # of one call
MAX_PROMPT_LOGPROBS: Final = 2**18  # (prompt_logprobs + 1) x prompt tokens: they travel in one message
MAX_NAME_CHARACTERS: Final = 128
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{0,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a number: [low, high], or (low, high] with `open_low`."""

    low: float
    high: float
    open_low: bool = False
    default: float | None = None

    def check(self, name: str, value: float) -> None:
        """Refusal unless `value` is inside."""
        above = value > self.low if self.open_low else value >= self.low
        if above and value <= self.high:
            return
        got = number(value)
        if self.high == UINT32:  # the field's type holds no more: only the lower bound says something
            raise invalid(name, f"must be at least {number(self.low)}, got {got}", value=got)
        raise invalid(name, f"{got} is outside of {self}", value=got)

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{number(self.low)}, {number(self.high)}]"


def number(value: float) -> str:
    """An integer with all its digits, anything else shortly."""
    return str(value) if isinstance(value, int) else f"{value:g}"


UINT32: Final = 2**32 - 1

SAMPLING: Final = {
    "temperature": Range(0, 100, default=1.0),
    "top_p": Range(0, 1, open_low=True, default=1.0),
    "top_k": Range(0, UINT32),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, 10, open_low=True, default=1.0),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
    "n": Range(1, 64, default=1),
    "beam_width": Range(1, 64, default=1),
    "length_penalty": Range(-10, 10, default=1.0),
}
RESPONSE: Final = {
    "logprobs": Range(0, 20),
    "prompt_logprobs": Range(0, 20),
    "stream_interval": Range(1, 1024, default=1),
}
BIAS: Final = Range(-100, 100)
PRIORITY: Final = Range(-1000, 1000)
MAX_TOKENS: Final = Range(1, UINT32)
