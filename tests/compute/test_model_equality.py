"""The runner gives, token for token, what transformers gives greedily in float32."""

from functools import cache
from itertools import product

import pytest
import torch

from compute.kernels.torch_cpu import TorchKernels
from compute.model.decoder import Decoder
from compute.runner import load
from tests.support import hf
from tests.support.drive import advance, generate, make_runner, open_streams

BLOCK_SIZES = (8, 16, 32)
SHAPES = ("alone", "ragged", "chunked")

# Every pair of family, heads, block size and shape; the full product runs in the long suite.
PAIRWISE = [
    (family, heads, BLOCK_SIZES[(i + j) % 3], SHAPES[(i + 2 * j) % 3])
    for i, family in enumerate(hf.FAMILIES)
    for j, heads in enumerate(hf.HEADS)
]
REST = [case for case in product(hf.FAMILIES, hf.HEADS, BLOCK_SIZES, SHAPES) if case not in PAIRWISE]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def loaded(family: str, heads: str) -> Decoder:
    return load(hf.reference(family, heads)[0], "float32")


def check(family: str, heads: str, block_size: int, shape: str) -> None:
    _, prompts, expected = hf.reference(family, heads)
    runner = make_runner(loaded(family, heads), block_size)
    assert min(len(set(tokens)) for tokens in expected) >= hf.DISTINCT
    if shape == "alone":
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
        assert expected[longest : longest + 1] == generate(runner, [prompts[longest]], hf.NEW_TOKENS)
    else:
        chunk = 16 if shape == "chunked" else None
        assert expected == generate(runner, prompts, hf.NEW_TOKENS, chunk)


@pytest.mark.parametrize(("family", "heads", "block_size", "shape"), PAIRWISE)
def test_output_equals_transformers(family, heads, block_size, shape):
    check(family, heads, block_size, shape)


@pytest.mark.full
@pytest.mark.parametrize(("family", "heads", "block_size", "shape"), REST)
def test_output_equals_transformers_everywhere(family, heads, block_size, shape):
    check(family, heads, block_size, shape)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_without_a_compiler_torch_gives_the_same(family):
    _, prompts, expected = hf.reference(family, "gqa")
    model = load(hf.reference(family, "gqa")[0], "float32")
    model.kernels = TorchKernels()
    assert expected == generate(make_runner(model, 16), prompts, hf.NEW_TOKENS, chunk=32)


def test_windows_are_shorter_than_prompts():
    for family in ("mistral", "gemma2", "gemma3_text"):
        windows = {window for window in loaded(family, "gqa").config.windows if window}
        assert 0 < max(windows) < max(hf.PROMPT_LENGTHS)


def test_a_sequence_computes_the_same_alone_and_in_company():
    """Logits within 1e-5, whoever shares the step."""
    _, prompts, _ = hf.reference("llama", "gqa")
    model = loaded("llama", "gqa")

    def logits(members: list[int], watched: int) -> list[torch.Tensor]:
        runner, seen = make_runner(model, 16), []
        plain = runner.readout.sampler.sample

        def sample(values, rows):
            seen.append(values[members.index(watched)].clone())
            return plain(values, rows)

        runner.readout.sampler.sample = sample
        streams = open_streams(runner, [prompts[i] for i in members], 20)
        for _ in range(20):
            advance(runner, streams)
        return seen

    for alone, shared in zip(logits([2], 2), logits([0, 1, 2, 3, 4, 5, 6, 7], 2), strict=True):
        assert alone.argmax() == shared.argmax()
        torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)


def test_one_corrupted_slot_changes_the_output():
    """The equality above is no accident: the pool's bytes are what decides."""
    _, prompts, expected = hf.reference("llama", "gqa")
    runner = make_runner(loaded("llama", "gqa"), 16)
    (stream,) = open_streams(runner, [prompts[0]], hf.NEW_TOKENS)
    advance(runner, [stream])
    runner.pool[stream.blocks[0], :, :, :, 3] *= -20.0
    while len(stream.output) < hf.NEW_TOKENS:
        advance(runner, [stream])
    assert stream.output != expected[0]


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_slots_nobody_wrote_are_never_seen(kernels):
    """Every slot that holds no token of a sequence turns NaN between all steps."""
    _, prompts, expected = hf.reference("gemma3_text", "mqa")
    model = load(hf.reference("gemma3_text", "mqa")[0], "float32")
    if kernels == "torch":
        model.kernels = TorchKernels()
    runner = make_runner(model, 16)
    streams = open_streams(runner, prompts, hf.NEW_TOKENS)
    for _ in range(24):
        advance(runner, streams, chunk=32)
        kept = torch.zeros(len(runner.pool), 16, dtype=torch.bool)
        for stream in streams:
            for place, block in enumerate(stream.blocks):
                kept[block, : max(stream.kv_len - 16 * place, 0)] = True
        runner.pool.masked_fill_(~kept[:, None, None, None, :, None], float("nan"))
    assert all(tokens[: len(s.output)] == s.output for s, tokens in zip(streams, expected, strict=True))
