"""n > 1 with one prefill: what a group gives is what n separate requests give, in float32, and its prompt ran once."""

from dataclasses import replace

import pytest

from compute.request import Request, SamplingParams
from holdfast.mix import mix
from tests.support.engine import Engine
from tests.support.hf import reference

NEW_TOKENS = 12
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1)


def engine_for(block_size: int = 16) -> tuple[Engine, list[int]]:
    folder, prompts, _ = reference("llama", "gqa")
    engine = Engine(folder, num_blocks=8192 // block_size, block_size=block_size, max_num_seqs=64)
    return engine, prompts[4]


def ask(engine: Engine, prompt: list[int], n: int, sampling: SamplingParams) -> list[Request]:
    """The Submits of one request, as a gateway sends them."""
    requests = [engine.request(prompt, NEW_TOKENS) for _ in range(n)]
    return [
        replace(one, index=i, n=n, group=requests[0].group, sampling=replace(sampling, seed=mix(7, i)))
        for i, one in enumerate(requests)
    ]


def run(engine: Engine, requests: list[Request]) -> list[list[int]]:
    for request in requests:
        engine.scheduler.submit(request)
    for _ in engine.steps():
        pass
    return [engine.outputs[request.sequence] for request in requests]


@pytest.mark.parametrize(("n", "block_size"), [(1, 16), (2, 8), (8, 16), (64, 16)])
def test_sampled_indexes_equal_separate_requests_with_their_seeds(n: int, block_size: int) -> None:
    engine, prompt = engine_for(block_size)
    grouped = run(engine, ask(engine, prompt, n, SAMPLED))
    assert engine.scheduler.progress.prompt_tokens == len(prompt)
    assert sum(len(row.token_ids) for plan in engine.plans for row in plan.rows if not row.start) == len(
        prompt
    )
    copied = sum(len(plan.copies) for plan in engine.plans)
    assert copied == (n - 1 if len(prompt) % block_size else 0)
    engine.state.flush()
    separate = [replace(one, n=1) for one in ask(engine, prompt, n, SAMPLED)]
    assert grouped == run(engine, separate)
    assert len(set(map(tuple, grouped))) > n // 2, "the seeds make no difference"
    engine.assert_clean()


@pytest.mark.parametrize("n", [2, 8])
def test_greedy_indexes_are_equal(n: int) -> None:
    """And equal transformers'."""
    engine, prompt = engine_for()
    _, _, answers = reference("llama", "gqa")
    outputs = run(engine, ask(engine, prompt, n, SamplingParams(temperature=0.0)))
    assert outputs == [answers[4][:NEW_TOKENS]] * n
    engine.assert_clean()


def test_a_copy_that_is_left_out_is_seen() -> None:
    """So the tests above would see a fork that reads what its tail held before."""
    engine, prompt = engine_for()
    assert len(prompt) % 16 > 1
    copy, engine.runner.copy = engine.runner.copy, lambda copies: copy(copies[1:])
    requests = ask(engine, prompt, 3, SamplingParams(temperature=0.0))
    for request in requests:
        engine.scheduler.submit(request)
    engine.pool[:] = 0.5
    for _ in engine.steps():
        pass
    right, wrong = ([engine.outputs[r.sequence] for r in requests][i] for i in (0, 1))
    assert right != wrong
