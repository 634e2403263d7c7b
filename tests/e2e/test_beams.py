"""Beam search equals transformers' in float32: outputs and scores, on the model that the repository ships."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from kvmanager.messages import FinishReason, Revoke
from tests.support.beams import Ask, answers, finishes, reference, request_of, search
from tests.support.engine import Engine
from tests.support.hf import open_reference

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-6m"
EOS, USER, STOP = 1, 6, 20  # end of text, the other end of text, a full stop
PROMPTS = ("Ben", "The little girl", "Once upon a time there was a fox", 'It was raining. Tom said: "We')
ENDS = (frozenset({EOS, USER}), frozenset({EOS, USER, STOP}), frozenset({STOP}), frozenset())
PENALTIES = (1.0, 0.0, 2.0, -1.0)
WIDTHS = (2, 3, 4, 6, 8)
TOLERANCE = 1e-4

# A pairwise cover: every two of (width, penalty, ends, n of width) meet; all of it is `full`.
PAIRS = [
    (2, 1.0, 1, 2),
    (3, 0.0, 2, 3),
    (4, 2.0, 3, 1),
    (6, 1.0, 0, 6),
    (8, -1.0, 1, 2),
    (4, 1.0, 2, 4),
    (8, 0.0, 3, 8),
]
EVERY = list(product(WIDTHS, PENALTIES, range(4), (1, None)))  # None: as many as beams


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other's turn take longer than the sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def transformers_model() -> Any:
    return open_reference(MODEL)


@cache
def prompt(text: str) -> list[int]:
    return list(Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids)


def engine_for(num_blocks: int = 512, block_size: int = 16) -> Engine:
    return Engine(MODEL, num_blocks=num_blocks, block_size=block_size, max_num_seqs=40)


def ask(width: int, penalty: float, ends: int, n: int, text: str = PROMPTS[2], **asked: int) -> Ask:
    given = {"max_tokens": 20} | asked
    return Ask(prompt(text), width, n, penalty, ends=ENDS[ends], **given)


def equal(got: list[Any], wanted: list[Any], penalty: float = 1.0) -> None:
    """A negative penalty multiplies a score, and what rounding did to it, by a power of the length."""
    assert [output for output, _ in got] == [output for output, _ in wanted]
    for (output, score), (_, right) in zip(got, wanted, strict=True):
        assert abs(score - right) <= TOLERANCE * max(1.0, len(output) ** -penalty)


def same_as_transformers(*asks: Ask) -> None:
    engine = engine_for()
    for got, one in zip(search(engine, *asks), asks, strict=True):
        equal(got, reference(transformers_model(), one), one.length_penalty)
    engine.assert_clean()
    assert engine.state.live_sequences == 0


@pytest.mark.parametrize(("width", "penalty", "ends", "n"), PAIRS)
def test_outputs_and_scores_equal_transformers(width: int, penalty: float, ends: int, n: int) -> None:
    same_as_transformers(ask(width, penalty, ends, n))


@pytest.mark.full
@pytest.mark.parametrize(
    ("place", "width", "penalty", "ends", "n"), [(i, *one) for i, one in enumerate(EVERY)]
)
def test_all_of_them(place: int, width: int, penalty: float, ends: int, n: int | None) -> None:
    same_as_transformers(ask(width, penalty, ends, n or width, PROMPTS[(place // 3) % 4]))


@pytest.mark.full
@pytest.mark.parametrize("n", range(1, 9))
def test_every_number_of_answers(n: int) -> None:
    same_as_transformers(ask(8, 1.0, 1, n))


def test_a_ragged_batch_of_searches_beside_plain_requests() -> None:
    """Widths, prompts, penalties and ends differ; each gives what it gives alone."""
    asks = [
        ask(w, PENALTIES[i % 3], i, min(w, 2), PROMPTS[i], max_tokens=12 + i)
        for i, w in enumerate((2, 4, 3, 6))
    ]
    engine = engine_for()
    requests = [request_of(engine, one) for one in asks]
    plain = engine.request(prompt(PROMPTS[0]), 24)
    for request in (*requests[:2], plain, *requests[2:]):
        engine.scheduler.submit(request)
    for _ in engine.steps():
        pass
    for request, one in zip(requests, asks, strict=True):
        equal(answers(engine, request), reference(transformers_model(), one))
    assert engine.outputs[plain.sequence] == engine_for().generate([plain.prompt], 24)[0]
    engine.assert_clean()


def test_min_tokens_and_ends() -> None:
    """Ids that end a beam cannot be drawn before min_tokens; each hypothesis says what ended it."""
    asked = ask(3, 1.0, 1, 3, min_tokens=9)
    engine = engine_for()
    request = request_of(engine, asked)
    engine.scheduler.submit(request)
    for _ in engine.steps():
        pass
    got = answers(engine, request)
    equal(got, reference(transformers_model(), asked))
    for (output, _), finish in zip(got, finishes(engine, request), strict=True):
        assert finish is (FinishReason.STOP if output[-1] in asked.ends else FinishReason.LENGTH)
        assert not asked.ends & set(output[:8])


def test_the_prompt_is_computed_once_and_blocks_are_shared() -> None:
    engine = engine_for(block_size=8)
    asked = ask(4, 1.0, 3, 1)
    search(engine, asked)
    rows = [row for plan in engine.plans for row in plan.rows]
    assert engine.scheduler.progress.prompt_tokens == len(asked.prompt)
    assert sum(len(row.token_ids) for row in rows) == len(asked.prompt) + 4 * 19
    assert sum(len(plan.copies) for plan in engine.plans) > 0


@pytest.mark.parametrize("every", [3, 7])
def test_a_search_whose_rows_are_revoked_gives_the_same(every: int) -> None:
    engine = engine_for(block_size=8)
    asked = ask(4, 1.0, 1, 4)
    request = request_of(engine, asked)
    engine.scheduler.submit(request)
    for number, _ in enumerate(engine.steps(), 1):
        running = list(engine.state._parts.sequences.open.values())
        if number % every == 0 and number < 30 and running:
            engine.scheduler.revoke(running[-1].id, running[-1].epoch, engine.clock)
    equal(answers(engine, request), reference(transformers_model(), asked))
    assert engine.scheduler.progress.preemptions > 1
    engine.assert_clean()


def test_a_copy_that_is_left_out_is_seen() -> None:
    """So the tests above would see a beam that reads what its tail held before."""
    engine = engine_for()
    copy, engine.runner.copy = engine.runner.copy, lambda copies: copy(copies[1:])
    engine.pool[:] = 0.5
    asked = ask(4, 1.0, 3, 4)
    got = search(engine, asked)[0]
    wanted = reference(transformers_model(), asked)
    assert [output for output, _ in got] != [output for output, _ in wanted] or any(
        abs(a[1] - b[1]) > 1e-3 for a, b in zip(got, wanted, strict=True)
    )


def test_pressure_revokes_and_the_search_gives_the_same() -> None:
    engine = engine_for(num_blocks=20, block_size=8)
    asked = ask(3, 1.0, 3, 3, max_tokens=24)
    request = replace(request_of(engine, asked), arrival_ns=10**15)
    plain = [engine.request(prompt(PROMPTS[i]), 70) for i in range(3)]
    engine.scheduler.submit(request)
    steps = engine.steps()
    for _ in range(6):
        next(steps)
    for one in plain:
        engine.scheduler.submit(one)
    for _ in steps:
        pass
    equal(answers(engine, request), reference(transformers_model(), asked))
    assert any(isinstance(reply, Revoke) for reply in engine.replies)
    engine.assert_clean()
