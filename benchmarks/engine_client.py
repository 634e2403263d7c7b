"""A gateway's side of a worker's socket, without gRPC: submits prompts of token ids and notes when tokens come."""

import secrets
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import zmq

from holdfast import wire
from holdfast.v1 import compute_pb2, generate_pb2

PATIENCE_MS = 120_000


@dataclass(slots=True)
class Run:
    """One batch of requests, all submitted at once. Times in seconds from the first Submit."""

    prompt_tokens: int
    output_tokens: int = 0
    seconds: float = 0.0
    messages: list[tuple[float, int]] = field(default_factory=list)  # when, and how many tokens came with it

    @property
    def output_rate(self) -> float:
        """Output tokens a second, prefill included."""
        return self.output_tokens / self.seconds

    @property
    def prompt_rate(self) -> float:
        return self.prompt_tokens / self.seconds

    def step_ms(self, rows: int) -> float:
        """Median time between two steps that gave `rows` tokens each: those of a full decode batch."""
        gaps = [b[0] - a[0] for a, b in pairwise(self.messages) if a[1] == b[1] == rows]
        return 1e3 * median(gaps)


class Client:
    """A DEALER to one worker."""

    def __init__(self, path: Path) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(f"ipc://{path}")

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Run:
        """Greedy, exactly `new_tokens` for each prompt. RuntimeError if one is refused."""
        requests = [wire.encode(submit(prompt, new_tokens)) for prompt in prompts]
        run = Run(sum(map(len, prompts)))
        start = time.perf_counter()
        for request in requests:
            self.socket.send(request)
        open_requests = len(prompts)
        while open_requests:
            open_requests -= self._take(run, start)
        run.seconds = time.perf_counter() - start
        assert run.output_tokens == new_tokens * len(prompts), run.output_tokens
        return run

    def _take(self, run: Run, start: float) -> int:
        """One message; how many requests ended with it."""
        if not self.socket.poll(PATIENCE_MS):
            raise RuntimeError("the worker says nothing")
        reply = wire.decode(compute_pb2.WorkerReply, self.socket.recv())
        if reply.WhichOneof("body") == "rejected":
            raise RuntimeError(f"refused: {reply.rejected.error.message}")
        tokens = sum(len(entry.token_ids) // 4 for entry in reply.tokens.entries)
        run.messages.append((time.perf_counter() - start, tokens))
        run.output_tokens += tokens
        return sum(entry.finish != 0 for entry in reply.tokens.entries)

    def close(self) -> None:
        self.context.destroy(0)


def submit(prompt: Sequence[int], new_tokens: int) -> Any:
    sequence = secrets.token_bytes(16)
    message = compute_pb2.Submit(
        sequence=sequence,
        group=sequence,
        n=1,
        request_id=sequence.hex()[:8],
        token_ids=struct.pack(f"<{len(prompt)}I", *prompt),
        arrival_ns=time.monotonic_ns(),
        tenant=bytes(32),
        sampling=generate_pb2.SamplingParams(temperature=0.0, seed=1),
        stopping=generate_pb2.StoppingCriteria(max_tokens=new_tokens, ignore_eos=True),
    )
    return compute_pb2.WorkerRequest(submit=message)
