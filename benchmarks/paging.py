"""PagedAttention's claim on a trace: how much KV memory holds no token, and how many requests fit at once.

    python -m benchmarks.paging [--requests 2000] [--slots 65536]

The trace is ShareGPT-like: prompts lognormal of mean 202 and sigma 1.1, outputs of mean 179 and sigma 0.9, each clipped
to 4..1024 tokens, drawn from a seed. holdfast's side is the real scheduler and the real allocator, tables and prefix
index (`KvState`), without a model: a step gives every running sequence a token. The others are the reservations that
paging replaced, simulated on the same trace in the same memory, first come first served, one token a step:

    maximum        2,048 slots for everybody: the longest prompt and the longest output
    power of two   the least power of two that holds the request's whole life
    oracle         exactly the slots of its whole life, known beforehand

Waste: 1 - slots that hold a token of a running sequence / slots that are allocated to running sequences, each summed
over all steps. The float (blocks granted to the worker ahead of use) is counted apart: it belongs to no sequence yet.
"""

import argparse
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import report
from benchmarks.engine_local import LocalLink, pool_spec
from compute.plan import RowResult, StepPlan, StepResult, StepRow
from compute.request import Request, SamplingParams, StopRules
from compute.scheduler import Limits, Outcome, Scheduler
from kvmanager.layout import Geometry
from kvmanager.messages import Acked, Granted, Numbered, Opened, Refused, Reply, Revoke, SequenceId, Wait

LEAST, MOST = 4, 1024
MAX_SEQS = 1024
POINTS = 100  # of a course
SETTLED = (0.1, 0.9)  # share of the requests between whose ends the load counts as steady


@dataclass(frozen=True, slots=True)
class Life:
    """One request of the trace, in tokens."""

    prompt: int
    output: int

    @property
    def slots(self) -> int:
        """Slots that it ever fills: the last token's KV is never written."""
        return self.prompt + self.output - 1


def trace(count: int, seed: int = 1) -> list[Life]:
    rng = random.Random(seed)

    def length(mean: float, sigma: float) -> int:
        drawn = rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        return min(max(round(drawn), LEAST), MOST)

    return [Life(length(202, 1.1), length(179, 0.9)) for _ in range(count)]


@dataclass
class Usage:
    """Sums over the steps of a run, and the course of it."""

    allocated: int = 0
    held: int = 0
    ahead: int = 0  # float
    running: list[int] = field(default_factory=list)
    course: list[tuple[int, int]] = field(default_factory=list)  # slots (allocated, held) at each step

    def note(self, allocated: int, held: int, running: int, ahead: int = 0) -> None:
        self.allocated += allocated
        self.held += held
        self.ahead += ahead
        self.running.append(running)
        self.course.append((allocated, held))

    def thinned(self, points: int) -> dict[str, list[int]]:
        """The course at about so many steps, evenly."""
        every = max(len(self.course) // points, 1)
        allocated, held = zip(*self.course[::every], strict=True)
        return {"every": [every], "allocated": [*allocated], "held": [*held]}

    def figures(self, slots: int) -> dict[str, float]:
        first, last = (int(len(self.running) * share) for share in SETTLED)
        steady = self.running[first:last]
        return {
            "waste": 1 - self.held / self.allocated,
            "ahead": self.ahead / slots / len(self.running),
            "requests_at_once": sum(steady) / len(steady),
            "steps": len(self.running),
        }


# --------------------------------------------------------------------------------------------- reservations


def reserved(lives: list[Life], slots: int, reservation: Callable[[Life], int]) -> Usage:
    """Contiguous memory, first come first served; fragments between reservations are not even counted."""
    usage, waiting, free = Usage(), deque(lives), slots
    running: list[list[Any]] = []  # [life, tokens with KV]
    while waiting or running:
        while waiting and reservation(waiting[0]) <= free and len(running) < MAX_SEQS:
            life = waiting.popleft()
            free -= reservation(life)
            running.append([life, life.prompt - 1])
        for one in running:
            one[1] += 1
        usage.note(slots - free, sum(one[1] for one in running), len(running))
        ended = [one for one in running if one[1] == one[0].slots]
        free += sum(reservation(one[0]) for one in ended)
        running = [one for one in running if one[1] < one[0].slots]
    return usage


def power_of_two(life: Life) -> int:
    return 1 << (life.slots - 1).bit_length()


RESERVATIONS: dict[str, Callable[[Life], int]] = {
    "maximum": lambda life: 2 * MOST,
    "power of two": power_of_two,
    "oracle": lambda life: life.slots,
}

# ------------------------------------------------------------------------------------------------- holdfast


class Paged:
    """Scheduler and KV state of one worker; every step takes 20 ms of a clock of its own."""

    def __init__(self, slots: int, block_size: int) -> None:
        num_blocks = slots // block_size
        spec = pool_spec(
            Geometry(1, 1, 2, block_size, "bfloat16"), num_blocks, max_model_len=2 * MOST,
            max_num_seqs=MAX_SEQS, vocab_size=1 << 16,
        )  # fmt: skip
        self.link = LocalLink(spec)
        self.state = self.link.state
        limits = Limits(
            max_num_seqs=MAX_SEQS, max_num_batched_tokens=8192, max_model_len=2 * MOST, block_size=block_size,
            num_blocks=num_blocks, eos_ids=frozenset(), vocab_size=1 << 16, max_waiting=1 << 16,
        )  # fmt: skip
        self.scheduler, self.block_size, self.now = Scheduler(limits), block_size, 0

    def run(self, lives: list[Life], seed: int = 2) -> Usage:
        rng, usage = random.Random(seed), Usage()
        for number, life in enumerate(lives):
            self.scheduler.submit(request(number, life, rng))
        for _ in self.steps():
            counts = self.state.counts()
            used = (counts.tail + counts.sealed - counts.cached) * self.block_size
            held, running = self.state.tokens_held, self.scheduler.progress.running
            if used:
                usage.note(used, held, running, counts.granted * self.block_size)
        return usage

    def steps(self) -> Iterator[StepPlan]:
        while not self.scheduler.idle:
            self.now += 20_000_000
            plan = self.scheduler.plan(self.now)
            for order in self.scheduler.orders(self.now):
                self.tell(order)
            if plan is None:
                self.say(self.scheduler.settle())
                continue
            result = StepResult([self.draw(row) for row in plan.rows])
            self.say(self.scheduler.advance(plan, result, self.now + 15_000_000))
            yield plan

    def draw(self, row: StepRow) -> RowResult:
        """No two requests share a prompt: which token follows does not matter."""
        return RowResult(token_id=7 if row.sample else None)

    def say(self, outcome: Outcome) -> None:
        assert not outcome.rejections, outcome.rejections
        for message in (outcome.commit, outcome.release):
            if message is not None:
                self.tell(message)

    def tell(self, message: Numbered) -> None:
        self.link.send(message)
        for number, reply in self.link.receive():
            self.hear(message, number, reply)

    def hear(self, message: Numbered, number: int, reply: Reply) -> None:
        scheduler = self.scheduler
        match reply:
            case Acked():
                scheduler.acked(message, reply.refusals, reply.granted)
            case Granted():
                scheduler.granted(reply, self.now) if number else scheduler.topped_up(reply)
            case Opened():
                scheduler.opened(reply)
            case Wait():
                scheduler.wait(reply, self.now)
            case Refused():
                scheduler.refused(reply, self.now)
            case Revoke():
                scheduler.revoke(reply.sequence, reply.epoch, self.now)


def request(number: int, life: Life, rng: random.Random) -> Request:
    """Random prompts: no two share a block."""
    return Request(
        sequence=SequenceId(number.to_bytes(16, "big")),
        group=bytes(16),
        index=0,
        request_id=str(number),
        prompt=tuple(rng.randrange(1 << 16) for _ in range(life.prompt)),
        sampling=SamplingParams(temperature=0.0),
        stop=StopRules(max_tokens=life.output, ignore_eos=True),
        arrival_ns=number,
    )


def measure(count: int, slots: int, block_sizes: tuple[int, ...] = (16,)) -> dict[str, Usage]:
    lives = trace(count)
    runs = {name: reserved(lives, slots, how) for name, how in RESERVATIONS.items()}
    return runs | {f"paged, block {size}": Paged(slots, size).run(lives) for size in block_sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=65_536)
    options = parser.parse_args()
    runs = measure(options.requests, options.slots, (16, 32, 64, 128))
    figures = {name: usage.figures(options.slots) for name, usage in runs.items()}
    print("| | waste | requests at once | steps | float, of the pool |\n|---|---|---|---|---|")
    for name, row in figures.items():
        print(
            f"| {name} | {row['waste']:.1%} | {row['requests_at_once']:.0f} | {row['steps']} | {row['ahead']:.1%} |"
        )
    settings = {"requests": options.requests, "slots": options.slots, "seed": 1}
    courses = {name: runs[name].thinned(POINTS) for name in (*RESERVATIONS, "paged, block 16")}
    report.write("paging", {"settings": settings, "figures": figures, "courses": courses})


if __name__ == "__main__":
    main()
