"""Greedy output equals Hugging Face transformers', token for token, in float32.

Every family × heads × block size × way of arriving. Real scheduler, KV state, runner and kernels in one process; a
subset that covers every pair of values runs here, all of them with `-m full`.
"""

import itertools
from collections.abc import Callable

import pytest

from compute.kernels.torch_cpu import TorchKernels
from tests.support.engine import Engine
from tests.support.hf import FAMILIES, HEADS, NEW_TOKENS, WINDOW, reference

BLOCK_SIZES = (8, 16, 32)
Tokens = list[list[int]]


def alone(engine: Engine, prompts: Tokens, answers: Tokens) -> None:
    """One request at a time: two of the prompts, the longest among them."""
    for place in (0, 4):
        assert engine.generate([prompts[place]], NEW_TOKENS) == [answers[place]]


def together(engine: Engine, prompts: Tokens, answers: Tokens) -> None:
    """Eight ragged ones at once."""
    assert engine.generate(prompts, NEW_TOKENS) == answers
    assert max(len(plan.rows) for plan in engine.plans) == 8


def sharing(engine: Engine, prompts: Tokens, answers: Tokens) -> None:
    """A prompt again, and that prompt with the begin of its answer: both find blocks of the first."""
    assert engine.generate(prompts[4:5], NEW_TOKENS) == answers[4:5]
    longer = prompts[4] + answers[4][:20]
    both = engine.generate([prompts[4], longer], [NEW_TOKENS, NEW_TOKENS - 20])
    assert both == [answers[4], answers[4][20:]]
    size = engine.runner.block_size
    sealed = (len(prompts[4]) + NEW_TOKENS - 1) // size * size
    lengths = len(prompts[4]), len(longer)
    cached = [engine.cached[sequence] for sequence in sorted(engine.cached)]
    assert cached == [0, *(found(length, sealed, size) for length in lengths)]


def found(length: int, sealed: int, size: int) -> int:
    """Of a prompt whose begin has so many sealed slots: all but the last token, or whole blocks where a copy saves less
    than half a block."""
    most = min(length - 1, sealed)
    whole = most // size * size
    return most if 2 * (most - whole) >= size else whole


def chunked(engine: Engine, prompts: Tokens, answers: Tokens) -> None:
    """Prefill in chunks of 16, mixed with the decodes of the others."""
    assert engine.generate(prompts, NEW_TOKENS) == answers
    chunks = [
        row
        for plan in engine.plans
        for row in plan.rows
        if row.sequence[0] == 5 and row.start < row.prompt_len
    ]
    assert len(chunks) >= 2
    assert any({len(row.token_ids) for row in plan.rows} > {1} for plan in engine.plans)


def preempted(engine: Engine, prompts: Tokens, answers: Tokens) -> None:
    """A pool that holds about a third of what is asked for at once."""
    assert engine.generate(prompts, NEW_TOKENS) == answers
    assert engine.preemptions >= 1


SCENARIOS: dict[
    str, tuple[Callable[[Engine, Tokens, Tokens], None], int, int]
] = {  # slots of the pool, chunk
    "alone": (alone, 2048, 512),
    "together": (together, 2048, 512),
    "sharing": (sharing, 2048, 512),
    "chunked": (chunked, 2048, 16),
    "preempted": (preempted, 320, 512),
}
EVERYTHING = list(itertools.product(FAMILIES, HEADS, BLOCK_SIZES, SCENARIOS))


def pairwise(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Rows that together hold every pair of values of two columns; greedy, in a fixed order."""
    columns = list(itertools.combinations(range(4), 2))
    open_pairs = {(a, b, row[a], row[b]) for row in rows for a, b in columns}
    chosen = []
    while open_pairs:
        best = max(rows, key=lambda row: sum((a, b, row[a], row[b]) in open_pairs for a, b in columns))
        open_pairs -= {(a, b, best[a], best[b]) for a, b in columns}
        chosen.append(best)
    return chosen


def check(family: str, heads: str, block_size: int, scenario: str, torch_only: bool = False) -> None:
    folder, prompts, answers = reference(family, heads)
    assert max(map(len, prompts)) > 2 * WINDOW
    run, slots, chunk = SCENARIOS[scenario]
    engine = Engine(folder, num_blocks=slots // block_size, block_size=block_size, chunk=chunk)
    if torch_only:
        engine.runner.model.kernels = TorchKernels()
    run(engine, prompts, answers)
    engine.assert_clean()


@pytest.mark.parametrize(("family", "heads", "block_size", "scenario"), pairwise(EVERYTHING))
def test_output_equals_transformers(family: str, heads: str, block_size: int, scenario: str) -> None:
    check(family, heads, block_size, scenario)


@pytest.mark.full
@pytest.mark.parametrize(("family", "heads", "block_size", "scenario"), EVERYTHING)
def test_every_combination_equals_transformers(
    family: str, heads: str, block_size: int, scenario: str
) -> None:
    check(family, heads, block_size, scenario)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_output_equals_transformers_without_compiled_kernels(family: str) -> None:
    check(family, "gqa", 16, "together", torch_only=True)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_corrupted_slot_changes_the_output(block_size: int) -> None:
    """So the tests above would see a wrong read of the cache."""
    folder, prompts, answers = reference("llama", "gqa")
    engine = Engine(folder, num_blocks=2048 // block_size, block_size=block_size)
    engine.scheduler.submit(engine.request(prompts[4], NEW_TOKENS))
    for plan in engine.steps():
        if len(engine.plans) == 3:
            engine.pool[plan.rows[0].blocks[1], 0, :, :, 3] += 3.0
    (output,) = engine.outputs.values()
    assert output != answers[4]
    assert output[:3] == answers[4][:3]
