"""Drives a Runner with hand-made plans: own block tables in random order, own chunking, no daemon and no scheduler."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from compute.model.decoder import Decoder
from compute.plan import RowResult, StepPlan, StepRow
from compute.request import SamplingParams
from compute.runner import Runner
from compute.sampler import Sampler
from kvmanager.messages import SequenceId

GREEDY = SamplingParams(temperature=0.0)


def make_runner(model: Decoder, block_size: int, num_blocks: int = 160) -> Runner:
    """A runner over a pool of its own in which every slot is NaN: what nobody wrote must never be seen."""
    config = model.config
    shape = (num_blocks, config.num_layers, 2, config.num_kv_heads, block_size, config.head_dim)
    return Runner(model, torch.full(shape, float("nan"), dtype=model.dtype), Sampler(config.vocab_size))


@dataclass
class Stream:
    """One sequence: its tokens so far, how many of them have KV, and its blocks."""

    name: SequenceId
    tokens: list[int]
    prompt_len: int
    blocks: list[int]
    kv_len: int = 0
    results: list[RowResult] = field(default_factory=list)

    def row(self, block_size: int, chunk: int | None = None, *, prompt_logprobs: int = 0) -> StepRow:
        """Its next part: at most `chunk` tokens."""
        end = len(self.tokens) if chunk is None else min(len(self.tokens), self.kv_len + chunk)
        return StepRow(
            sequence=self.name,
            epoch=1,
            token_ids=self.tokens[self.kv_len : end],
            start=self.kv_len,
            blocks=self.blocks[: -(-end // block_size)],
            sample=end == len(self.tokens),
            history=self.tokens[:end],
            prompt_len=self.prompt_len,
            sampling=GREEDY,
            prompt_logprobs=prompt_logprobs,
        )

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_len :]


def open_streams(runner: Runner, prompts: list[list[int]], count: int, seed: int = 0) -> list[Stream]:
    """A stream for each prompt with blocks for `count` more tokens, drawn from the pool in random order."""
    free = list(range(len(runner.pool)))
    random.Random(seed).shuffle(free)
    streams = []
    for index, prompt in enumerate(prompts):
        need = -(-(len(prompt) + count) // runner.block_size)
        blocks = [free.pop() for _ in range(need)]
        streams.append(Stream(SequenceId(bytes([index]) * 16), list(prompt), len(prompt), blocks))
    return streams


def advance(
    runner: Runner, streams: list[Stream], chunk: int | None = None, prompt_logprobs: int = 0
) -> None:
    """One step of all streams."""
    rows = [s.row(runner.block_size, chunk, prompt_logprobs=prompt_logprobs) for s in streams]
    results = runner.run(StepPlan(0, rows)).rows
    for stream, row, result in zip(streams, rows, results, strict=True):
        assert result.error is None, result.error
        stream.kv_len += len(row.token_ids)
        stream.results.append(result)
        if result.token_id is not None:
            stream.tokens.append(result.token_id)


def generate(
    runner: Runner,
    prompts: list[list[int]],
    count: int,
    chunk: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """`count` greedy tokens for each prompt, all in one batch."""
    streams = open_streams(runner, prompts, count)
    while running := [stream for stream in streams if len(stream.output) < count]:
        advance(runner, running, chunk)
        between()
    return [stream.output for stream in streams]
