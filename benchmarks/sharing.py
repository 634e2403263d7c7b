"""Copy-on-write on a trace: how much KV memory the samples and the beams of a request have in common.

    python -m benchmarks.sharing [--requests 400]

The trace of `benchmarks.paging`, each request with n parallel samples or as a beam search of width n, every sample or
beam as long as the trace's output. Parallel sampling: the real scheduler over the real allocator and tables, without a
model. Beam search: forks, commits and closes on the daemon's policy (`benchmarks.beams`), descended as beams of the
shipped model did.

    blocks   1 - blocks in use / blocks of all rows: a block counts once for the pool, and once for each row it is in
    slots    the same for the slots of these blocks that hold a token

each summed over every eighth step, beside the optimum: blocks and slots that are needed at least, where what has the
same beginning is needed once. It comes from the sequences' tokens alone (`benchmarks.optimum`).

Parallel sampling runs twice: in memory for everybody, and in the 65,536 slots of `benchmarks.paging`, where sequences
are preempted and what they had in common must be found again.
"""

import argparse
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks import report
from benchmarks.beams import Beams
from benchmarks.engine_local import LocalLink
from benchmarks.optimum import distinct_blocks, distinct_slots
from benchmarks.paging import Life, Paged, request, trace
from compute.plan import RowResult, StepRow
from kvmanager.messages import SequenceId

WIDTHS = (2, 4, 6)
EVERY = 8  # steps between two looks
BLOCK = 16
AMPLE, TIGHT = 1 << 19, 1 << 16  # slots
PAPER = {
    "parallel": [0.162, 0.305],
    "beam": [0.443, 0.663],
}  # saved on ShareGPT, arXiv 2309.06180, section 6.3


@dataclass(slots=True)
class Savings:
    """Sums over the steps that were looked at."""

    block_size: int
    used_blocks: int = 0
    row_blocks: int = 0
    needed_blocks: int = 0
    filled_slots: int = 0
    row_slots: int = 0
    needed_slots: int = 0
    preemptions: int = 0

    def note(self, link: LocalLink, sequences: list[list[int]]) -> None:
        """`sequences`: the tokens of each whose KV is held."""
        counts, rows = link.state.counts(), open_rows(link)
        self.used_blocks += counts.tail + counts.sealed - counts.cached
        self.row_blocks += sum(len(blocks) for blocks, _ in rows)
        self.needed_blocks += distinct_blocks(sequences, self.block_size)
        self.filled_slots += filled_slots(rows, self.block_size)
        self.row_slots += sum(map(len, sequences))
        self.needed_slots += distinct_slots(sequences)

    def figures(self) -> dict[str, float]:
        return {
            "blocks": 1 - self.used_blocks / self.row_blocks,
            "blocks_optimum": 1 - self.needed_blocks / self.row_blocks,
            "slots": 1 - self.filled_slots / self.row_slots,
            "slots_optimum": 1 - self.needed_slots / self.row_slots,
            "preemptions": self.preemptions,
        }


def open_rows(link: LocalLink) -> list[tuple[list[int], int]]:
    """Blocks and kv_len of each open sequence, as whoever maps the metadata reads them."""
    entries = link.state.layout.view(link.metadata).entries
    live = (one for one in link.state.sequences() if one.state == "open")
    return [(entries[one.row, : one.num_blocks].tolist(), one.kv_len) for one in live]


def filled_slots(rows: Iterable[tuple[list[int], int]], size: int) -> int:
    """Slots that hold a token, one of a shared block counted once."""
    filled: dict[int, int] = {}
    for blocks, kv_len in rows:
        for place, block in enumerate(blocks):
            filled[block] = max(filled.get(block, 0), min(kv_len - place * size, size))
    return sum(filled.values())


class Sampled(Paged):
    """Every token is another, so that samples of one prompt part at once."""

    def __init__(self, slots: int, block_size: int) -> None:
        super().__init__(slots, block_size)
        self.rng = random.Random(4)

    def draw(self, row: StepRow) -> RowResult:
        if not row.sample:
            return RowResult()
        own, *forks = (RowResult(token_id=self.rng.randrange(1 << 16)) for _ in range(1 + len(row.forks)))
        return replace(own, forks=forks)

    def held(self) -> list[list[int]]:
        """Tokens of each open sequence up to its kv_len, as the daemon has them."""
        live = (one for one in self.state.sequences() if one.state == "open")
        return [
            self.state.read_record(SequenceId(bytes.fromhex(one.id))).token_ids[: one.kv_len] for one in live
        ]


def parallel(lives: Iterable[Life], n: int, slots: int, block_size: int = BLOCK) -> Savings:
    pool, found, rng = Sampled(slots, block_size), Savings(block_size), random.Random(2)
    for number, life in enumerate(lives):
        first = request(number * n, life, rng)
        for index in range(n):
            sequence = SequenceId((number * n + index).to_bytes(16, "big"))
            group = number.to_bytes(16, "big")
            pool.scheduler.submit(replace(first, sequence=sequence, group=group, index=index, n=n))
    for number, _ in enumerate(pool.steps()):
        if number % EVERY == 0 and pool.state.tokens_held:
            found.note(pool.link, pool.held())
    found.preemptions = pool.state.preemptions
    return found


def beam(lives: Iterable[Life], width: int, block_size: int = BLOCK) -> Savings:
    beams, found = Beams(width, block_size), Savings(block_size)
    for number, held in enumerate(beams.run(list(lives))):
        if number % EVERY == 0:
            found.note(beams.link, held)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    lives = trace(options.requests)
    figures = {
        "parallel": {n: parallel(lives, n, AMPLE).figures() for n in WIDTHS},
        "parallel, preempted": {n: parallel(lives, n, TIGHT).figures() for n in WIDTHS},
        "beam": {n: beam(lives, n).figures() for n in WIDTHS},
    }
    print(
        "| | n | blocks saved | at best | slots saved | at best | preemptions |\n|---|---|---|---|---|---|---|"
    )
    for kind, rows in figures.items():
        for n, row in rows.items():
            *shares, preemptions = row.values()
            print(
                f"| {kind} | {n} | " + " | ".join(f"{value:.1%}" for value in shares) + f" | {preemptions} |"
            )
    settings = {"requests": options.requests, "slots": {"ample": AMPLE, "tight": TIGHT}, "block_size": BLOCK}
    report.write("sharing", {"settings": settings | {"seed": 1}, "paper": PAPER, "figures": figures})


if __name__ == "__main__":
    main()
