"""What a step does beside the model: copies, rows that fail alone, prompt log-probabilities, nothing at all."""

import dataclasses

import pytest
import torch

from compute import readout
from compute.plan import CopyOrder, StepPlan
from compute.runner import load
from tests.support import hf
from tests.support.drive import advance, generate, make_runner, open_streams

COUNT = 12


@pytest.fixture(scope="module")
def model():
    return load(hf.reference("llama", "gqa")[0], "float32")


@pytest.fixture
def runner(model):
    return make_runner(model, 16)


def test_an_empty_plan_gives_an_empty_result(runner):
    assert len(runner.run(StepPlan(0, ())).rows) == 0


def test_a_copied_block_serves_as_the_original(runner):
    """Fork a sequence within its tail block: the copy goes on like the parent, the parent is not touched."""
    _, prompts, expected = hf.reference("llama", "gqa")
    (parent,) = open_streams(runner, [prompts[2]], COUNT)
    advance(runner, [parent])
    used = parent.kv_len // 16
    spare = next(block for block in range(len(runner.pool)) if block not in parent.blocks)
    copy = CopyOrder(parent.blocks[used], spare, parent.kv_len % 16)
    child = dataclasses.replace(
        parent, blocks=[*parent.blocks[:used], spare, *parent.blocks[used + 1 :]], tokens=list(parent.tokens)
    )
    runner.run(StepPlan(1, (), (copy,)))
    assert torch.isnan(runner.pool[spare, :, :, :, copy.slots :]).all()
    runner.pool[parent.blocks[used]] = float("nan")
    while len(child.output) < COUNT and child.kv_len + 1 < 16 * (used + 1):
        advance(runner, [child])
    assert len(child.output) > 2
    assert expected[2][: len(child.output)] == child.output


def test_a_row_that_is_not_a_number_fails_alone(runner):
    _, prompts, expected = hf.reference("llama", "gqa")
    good, bad = open_streams(runner, prompts[:2], COUNT)
    advance(runner, [good, bad])
    runner.pool[bad.blocks[0], 0, 1, 0, 0] = float("nan")
    results = runner.run(StepPlan(1, [good.row(16), bad.row(16)])).rows
    assert results[0].token_id == expected[0][1]
    assert results[0].error is None
    assert results[1].token_id is None
    assert results[1].error is not None


@pytest.mark.parametrize("scored", [5, 256])
@pytest.mark.parametrize("chunk", [None, 16, 7, 1])
def test_prompt_logprobs_are_the_same_however_the_prompt_is_cut(runner, chunk, scored, monkeypatch):
    """Into chunks of a step, and into parts whose logits are made at once."""
    monkeypatch.setattr(readout, "SCORED", scored)
    folder, prompts, expected = hf.reference("llama", "gqa")
    prompt = prompts[0]
    streams = open_streams(runner, [prompt, prompts[4]], COUNT)
    while not streams[0].output:
        advance(runner, streams, chunk, prompt_logprobs=2)
    found = [entry for result in streams[0].results for entry in result.prompt_logprobs]
    with torch.inference_mode():
        logits = hf.open_reference(folder)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert [entry.token_id for entry in found] == prompt[1:]
    wanted = logits[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    torch.testing.assert_close(torch.tensor([entry.logprob for entry in found]), wanted, atol=1e-3, rtol=0)
    assert streams[0].output == expected[0][:1]
    assert all(len(entry.top) == 2 for entry in found)


def test_a_mixed_step_serves_chunks_and_decode_rows_together(runner):
    _, prompts, expected = hf.reference("llama", "gqa")
    streams = open_streams(runner, prompts, COUNT)
    for waiting in range(len(streams)):
        advance(runner, streams[: waiting + 1], chunk=20)
    while min(len(stream.output) for stream in streams) < COUNT:
        advance(runner, [stream for stream in streams if len(stream.output) < COUNT], chunk=20)
    assert [tokens[:COUNT] for tokens in expected] == [stream.output[:COUNT] for stream in streams]


def test_order_of_rows_does_not_matter(model):
    _, prompts, _ = hf.reference("llama", "gqa")
    forward = generate(make_runner(model, 16), prompts, COUNT, chunk=24)
    assert generate(make_runner(model, 16), prompts[::-1], COUNT, chunk=24) == forward[::-1]


def test_a_beam_gives_its_most_likely_tokens_and_draws_none(runner, model):
    """In order, with the log-probabilities of the model; beside it another row draws."""
    _, prompts, expected = hf.reference("llama", "gqa")
    streams = open_streams(runner, prompts[:2], COUNT)
    rows = [one.row(16) for one in streams]
    plan = StepPlan(0, [dataclasses.replace(rows[0], candidates=7), rows[1]])
    beam, plain = runner.run(plan).rows
    assert (beam.token_id, len(beam.candidates)) == (None, 7)
    assert beam.candidates[0][0] == expected[0][0]
    assert [logprob for _, logprob in beam.candidates] == sorted(
        (logprob for _, logprob in beam.candidates), reverse=True
    )
    assert plain.token_id == expected[1][0]


def test_a_beam_whose_logits_are_not_finite_fails_alone(runner, model):
    _, prompts, _ = hf.reference("llama", "gqa")
    streams = open_streams(runner, prompts[:2], COUNT)
    rows = [dataclasses.replace(one.row(16), candidates=3) for one in streams]
    logits = runner.readout.logits
    runner.readout.logits = lambda hidden, places: spoil(logits(hidden, places))
    bad, good = runner.run(StepPlan(0, rows)).rows
    assert (bad.error, good.error) == ("the model's logits are not finite", None)
    assert len(good.candidates) == 3


def spoil(logits):
    logits[0] = float("nan")
    return logits
