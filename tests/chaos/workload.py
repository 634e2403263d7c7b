"""What the chaos runs ask for, and what came back: every kind of request that a fault must not change."""

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.client import Client

WORDS: Final = "once upon a time there was a small fox, a boat, a river, the moon, a bird, and then".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Work:
    """One request; equal ones give equal tokens."""

    name: str
    prompt: str
    options: tuple[tuple[str, Any], ...]


@dataclass(slots=True)
class Stream:
    """What one request gave: by index its tokens, when each came, and why it ended."""

    work: Work
    began: float = field(default_factory=time.monotonic)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    times: dict[int, list[float]] = field(default_factory=dict)
    reasons: dict[int, int] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    error: str = ""

    def heard(self, index: int, token_ids: Sequence[int], text: str, offset: int) -> None:
        """`offset`: output tokens of the index so far, by the server's count."""
        own = self.tokens.setdefault(index, [])
        own.extend(token_ids)
        self.texts[index] = self.texts.get(index, "") + text
        self.times.setdefault(index, []).append(time.monotonic())
        if len(own) != offset:
            self.error = self.error or f"index {index}: {len(own)} tokens came, the server counts {offset}"

    def in_decode(self) -> bool:
        """It has shown tokens of every index, and is not done."""
        return bool(self.times) and len(self.reasons) < len(self.times)


def works(seed: int, count: int, tokens: int) -> list[Work]:
    """`count` requests: greedy, sampled, several at once, beam searches; prompts from a few tokens to many blocks."""
    rng = random.Random(seed)
    return [make(rng, number, tokens) for number in range(count)]


def make(rng: random.Random, number: int, tokens: int) -> Work:
    kind = ("greedy", "sampled", "sampled", "several", "penalised", "beam")[number % 6]
    length = rng.choice((8, 40, 150, 400))
    options: dict[str, Any] = {"max_tokens": rng.randint(tokens // 2, tokens), "ignore_eos": True}
    options |= {"seed": rng.getrandbits(32)}
    if kind == "greedy":
        options |= {"temperature": 0.0}
    elif kind == "several":
        options |= {"n": 3, "temperature": 0.9}
    elif kind == "penalised":
        options |= {"temperature": 0.7, "repetition_penalty": 1.2, "top_p": 0.9}
    elif kind == "beam":
        options |= {"beam_width": 3, "n": 2, "temperature": 0.0}
    prompt = " ".join(rng.choice(WORDS) for _ in range(length))
    return Work(f"{kind}-{number}", prompt, tuple(options.items()))


def endless(items: Sequence[Work], seed: int) -> Iterator[Work]:
    """All of them in a random order, again and again."""
    rng = random.Random(seed)
    for _ in itertools.count():
        order = list(items)
        rng.shuffle(order)
        yield from order


async def run(client: Client, work: Work, into: list[Stream]) -> Stream:
    """One request to its end. Errors are noted, not raised."""
    stream = Stream(work)
    into.append(stream)
    try:
        async for chunk in client.generate(work.prompt, retries=60, **dict(work.options)):
            stream.heard(chunk.index, chunk.token_ids, chunk.text, chunk.next_offset)
            if chunk.finish is not None:
                stream.reasons[chunk.index] = chunk.finish.reason
    except Exception as error:  # noqa: BLE001 - a finding of the run
        stream.error = f"{type(error).__name__}: {error}"
    return stream
