"""The service in one process: the real scheduler, KV state and runner, without sockets and threads between them.

What a worker and the daemon do by messages happens here by calls in the same order, so a test can look at every plan
and every reply. Owns no policy.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from compute.plan import StepPlan
from compute.request import Request, SamplingParams, StopRules
from compute.runner import Runner, load
from compute.sampler import Sampler
from compute.scheduler import Limits, Outcome, Scheduler
from kvmanager.layout import MetaLayout, PoolLayout, PoolSpec
from kvmanager.messages import (
    Acked,
    FinishReason,
    Granted,
    Numbered,
    Opened,
    Refused,
    Reply,
    Retry,
    Revoke,
    SequenceId,
    SessionId,
    Wait,
)
from kvmanager.state import KvState

SESSION = SessionId(bytes(16))


class Engine:
    """One model over one pool. `generate` runs requests to their end and keeps what happened for the test."""

    def __init__(
        self,
        folder: Path,
        *,
        num_blocks: int,
        block_size: int,
        chunk: int = 512,
        dtype: str = "float32",
        **limits: int,
    ) -> None:
        model = load(folder, dtype)
        config = model.config
        geometry = config.geometry(block_size, dtype)
        self.pool = torch.full(PoolLayout(geometry).shape(num_blocks), float("nan"), dtype=model.dtype)
        self.runner = Runner(model, self.pool, Sampler(config.vocab_size))
        spec = PoolSpec(
            name="p", geometry=geometry, num_blocks=num_blocks, model="m", model_fingerprint=bytes(32), device="cpu",
            dtype=dtype, max_model_len=512, max_num_seqs=limits.get("max_num_seqs", 16),
            vocab_size=config.vocab_size, nonce=bytes(16),
        )  # fmt: skip
        self.state = KvState.create(bytearray(MetaLayout(spec).total_bytes), spec, 0)
        self.state.attach(SESSION, worker_id="w", endpoint="e", pid=1, start_time=1, now_ns=0)
        self.scheduler = Scheduler(
            Limits(
                max_num_seqs=limits.get("max_num_seqs", 16), max_num_batched_tokens=chunk, max_model_len=512,
                block_size=block_size, num_blocks=num_blocks, eos_ids=config.eos_ids, vocab_size=config.vocab_size,
            )
        )  # fmt: skip
        self.clock, self.number = 0, 0
        self.plans: list[StepPlan] = []
        self.outputs: dict[SequenceId, list[int]] = {}
        self.finished: dict[SequenceId, FinishReason] = {}
        self.cached: dict[SequenceId, int] = {}
        self.replies: list[Reply] = []
        self.scores: dict[SequenceId, float] = {}

    @property
    def preemptions(self) -> int:
        return sum(isinstance(reply, Revoke) for reply in self.replies)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int | Sequence[int]) -> list[list[int]]:
        """Greedy continuations, all submitted at once."""
        counts = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
        requests = [self.request(prompt, count) for prompt, count in zip(prompts, counts, strict=True)]
        for request in requests:
            self.scheduler.submit(request)
        for _ in self.steps():
            pass
        return [self.outputs[request.sequence] for request in requests]

    def request(self, prompt: Sequence[int], new_tokens: int) -> Request:
        sequence = SequenceId((len(self.outputs) + 1).to_bytes(16, "little"))
        self.outputs[sequence] = []
        return Request(
            sequence=sequence,
            group=sequence,
            index=0,
            request_id="r",
            prompt=tuple(prompt),
            sampling=SamplingParams(temperature=0.0),
            stop=StopRules(max_tokens=new_tokens, ignore_eos=True),
            arrival_ns=self.clock,
        )

    def steps(self) -> Iterator[StepPlan]:
        """One plan after another until nothing is left."""
        idle = 0
        while not self.scheduler.idle:
            self.clock += 10_000_000
            plan = self.scheduler.plan(self.clock)
            for order in self.scheduler.orders(self.clock):
                self.tell(order)
            idle = 0 if plan else idle + 1
            assert idle < 1000, "nothing moves"
            outcome = self.scheduler.settle() if plan is None else self.step(plan)
            self.say(outcome)
            if plan is not None:
                yield plan
        self.say(self.scheduler.settle())

    def step(self, plan: StepPlan) -> Outcome:
        self.plans.append(plan)
        return self.scheduler.advance(plan, self.runner.run(plan), self.clock)

    def say(self, outcome: Outcome) -> None:
        for message in (outcome.commit, outcome.release):
            if message is not None:
                self.tell(message)
        assert not outcome.rejections, outcome.rejections
        for event in outcome.events:
            self.outputs[event.sequence].extend(event.token_ids)
            self.cached[event.sequence] = event.cached_tokens
            if event.finish:
                self.finished[event.sequence] = event.finish
            if event.score is not None:
                self.scores[event.sequence] = event.score

    def tell(self, message: Numbered) -> None:
        self.number += 1
        for outgoing in self.state.apply(SESSION, self.number, message, self.clock):
            self.replies.append(outgoing.reply)
            self.hear(message, outgoing.reply)

    def hear(self, message: Numbered, reply: Reply) -> None:
        scheduler = self.scheduler
        match reply:
            case Acked():
                assert not reply.refusals, reply.refusals
                scheduler.acked(message, reply.refusals, reply.granted)
            case Granted():
                scheduler.granted(reply, self.clock)
            case Opened():
                scheduler.opened(reply)
            case Wait():
                scheduler.wait(reply, self.clock)
            case Refused():
                scheduler.refused(reply, self.clock)
            case Revoke():
                scheduler.revoke(reply.sequence, reply.epoch, self.clock)
            case Retry():
                scheduler.retry(reply.sequence)

    def assert_clean(self) -> None:
        """Nothing leaked: every block is free, cached or float, and the metadata agree with themselves."""
        counts = self.state.counts()
        assert counts.tail == counts.quarantined == 0, counts
        assert counts.free + counts.cached + counts.granted == self.state.spec.num_blocks, counts
        assert self.state.check_integrity() == []
