"""Steps on a GPU (or in Triton's interpreter) give the CPU runner's tokens: graphs, chunks, mixed steps, two deep."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from compute.gpu.runner import GpuRunner
from compute.kernels.cuda import CudaKernels
from compute.kernels.torch_cpu import TorchKernels
from compute.model.decoder import Decoder
from compute.model_config import ModelConfig
from compute.plan import UNKNOWN, CopyOrder, Draw, RowResult, StepPlan, StepRow
from compute.request import SamplingParams
from compute.runner import Runner
from compute.sampler import Sampler
from compute.scheduler import Limits
from compute.weights import Dummy
from tests.support.drive import Stream, open_streams
from tests.support.interpreter import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide):RuntimeWarning")
VOCAB, BLOCK, BLOCKS, COUNT = 97, 16, 40, 5
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
PROMPTS = [[5, 9, 23, 4, 77, 60, 3], list(range(1, 40)), [88]]


def config_of(folder: Path) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return ModelConfig.from_folder(folder)


def model_on(device: torch.device, config: ModelConfig, kernels: object) -> Decoder:
    dummy = Dummy(3, torch.float16, norm_offset=False)
    with torch.inference_mode():
        return Decoder(config, dummy, kernels, device, lambda _done, _all: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return config_of(tmp_path_factory.mktemp("tiny"))


def poisoned(device: torch.device) -> torch.Tensor:
    return torch.full((BLOCKS, 2, 2, 1, BLOCK, 64), float("nan"), dtype=torch.float16, device=device)


@pytest.fixture(scope="module")
def gpu_model(config: ModelConfig) -> Decoder:
    return model_on(DEVICE, config, CudaKernels())


@pytest.fixture
def gpu(config: ModelConfig, gpu_model: Decoder) -> GpuRunner:
    limits = Limits(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=128, block_size=BLOCK, num_blocks=BLOCKS,
        eos_ids=frozenset(), vocab_size=VOCAB,
    )  # fmt: skip
    runner = GpuRunner(gpu_model, poisoned(DEVICE), limits)
    runner.prepare()
    assert runner.pool.isnan().all(), "nothing is written before the first step"
    return runner


@pytest.fixture(scope="module")
def expected(config: ModelConfig) -> list[list[int]]:
    """What each prompt gives alone on the CPU."""
    cpu = torch.device("cpu")
    runner = Runner(model_on(cpu, config, TorchKernels()), poisoned(cpu), Sampler(VOCAB))
    streams = open_streams(runner, PROMPTS, COUNT)  # type: ignore[arg-type]
    for _ in range(COUNT):
        for stream in streams:
            take(stream, stream.row(BLOCK), runner.run(StepPlan(0, [stream.row(BLOCK)])).rows[0])
    return [stream.output for stream in streams]


def take(stream: Stream, row: StepRow, got: RowResult) -> None:
    assert got.error is None, got.error
    stream.kv_len = row.start + len(row.token_ids)
    if got.token_id is not None:
        stream.tokens.append(got.token_id)


def opened(runner: GpuRunner) -> list[Stream]:
    runner.block_size = BLOCK  # type: ignore[attr-defined] - what `open_streams` asks of a runner
    return open_streams(runner, PROMPTS, COUNT)  # type: ignore[arg-type]


def advance(runner: GpuRunner, streams: list[Stream], chunk: int | None = None) -> None:
    rows = [stream.row(BLOCK, chunk) for stream in streams]
    for stream, row, got in zip(streams, rows, runner.launch(StepPlan(0, rows))().rows, strict=True):
        take(stream, row, got)


@pytest.mark.parametrize("chunk", [None, 7])
def test_chunks_and_graphs_give_the_cpu_s_tokens(
    gpu: GpuRunner, expected: list[list[int]], chunk: int | None
) -> None:
    streams = opened(gpu)
    while running := [stream for stream in streams if len(stream.output) < COUNT]:
        advance(gpu, running, chunk)
    assert [stream.output for stream in streams] == expected


def test_a_mixed_step_keeps_the_plan_s_order(gpu: GpuRunner, expected: list[list[int]]) -> None:
    """Chunks stand before decode rows in the plan and behind them in the ring."""
    streams = opened(gpu)
    advance(gpu, streams[2:])
    advance(gpu, [streams[0], streams[2], streams[1]], 9)
    while running := [stream for stream in streams if len(stream.output) < COUNT]:
        advance(gpu, running, 9)
    assert [stream.output for stream in streams] == expected


def test_two_steps_on_their_way(gpu: GpuRunner, expected: list[list[int]]) -> None:
    """Every step but the first is launched before the last one's tokens are read."""
    streams = opened(gpu)
    rows = [stream.row(BLOCK) for stream in streams]
    landings = [gpu.launch(StepPlan(0, rows))]
    outputs: list[list[int]] = [[] for _ in streams]
    for step in range(1, COUNT):
        rows = [unknown(stream, len(stream.tokens) + step - 1) for stream in streams]
        landings.append(gpu.launch(StepPlan(step, rows)))
        collect(outputs, landings.pop(0)().rows)
    collect(outputs, landings.pop(0)().rows)
    assert outputs == expected


def unknown(stream: Stream, start: int) -> StepRow:
    """The decode row at `start`, of a token that nobody has read."""
    row = dataclasses.replace(
        stream, kv_len=start, tokens=[*stream.tokens, *[0] * (start - len(stream.tokens) + 1)]
    )
    return dataclasses.replace(row.row(BLOCK), token_ids=(UNKNOWN,), history=())


def collect(outputs: list[list[int]], results: object) -> None:
    for output, got in zip(outputs, results, strict=True):  # type: ignore[call-overload]
        output.append(got.token_id)


def test_rows_with_wishes_are_drawn_by_the_host_beside_plain_ones(
    gpu: GpuRunner, expected: list[list[int]]
) -> None:
    streams = opened(gpu)
    advance(gpu, streams)
    bias = SamplingParams(temperature=0.0, logit_bias={50: 1e4})
    rows = [
        dataclasses.replace(streams[0].row(BLOCK), sampling=bias),
        dataclasses.replace(streams[1].row(BLOCK), logprobs=3),
        streams[2].row(BLOCK),
    ]
    got = gpu.launch(StepPlan(1, rows))().rows
    assert [one.token_id for one in got] == [50, expected[1][1], expected[2][1]]
    assert got[1].logprob is not None
    assert got[1].logprob.rank == 1
    assert len(got[1].logprob.top) == 3


def test_a_row_draws_the_first_tokens_of_those_who_fork_from_it(
    gpu: GpuRunner, expected: list[list[int]]
) -> None:
    streams = opened(gpu)[:2]
    heat = SamplingParams(temperature=1.5, seed=12345)
    wishes = [Draw(SamplingParams(temperature=0.0)), Draw(heat), Draw(heat, logprobs=2)]
    rows = [dataclasses.replace(streams[0].row(BLOCK), forks=wishes), streams[1].row(BLOCK)]
    got = gpu.launch(StepPlan(0, rows))().rows
    own = dataclasses.replace(streams[0].row(BLOCK), sampling=heat)
    alone = gpu.launch(StepPlan(1, [own]))().rows[0].token_id
    assert [one.token_id for one in got] == [expected[0][0], expected[1][0]]
    assert [one.token_id for one in got[0].forks] == [expected[0][0], alone, alone]
    assert got[0].forks[2].logprob is not None


def test_a_row_that_is_not_a_number_fails_alone(gpu: GpuRunner, expected: list[list[int]]) -> None:
    streams = opened(gpu)[:2]
    advance(gpu, streams)
    gpu.pool[streams[1].blocks[0], 0, 1, 0, 0] = float("nan")
    got = gpu.launch(StepPlan(1, [stream.row(BLOCK) for stream in streams]))().rows
    assert (got[0].token_id, got[0].error) == (expected[0][1], None)
    assert got[1].token_id is None
    assert "not finite" in str(got[1].error)


def test_a_chunk_that_draws_nothing_gives_nothing(gpu: GpuRunner) -> None:
    stream = opened(gpu)[1]
    got = gpu.launch(StepPlan(0, [stream.row(BLOCK, 20)]))().rows
    assert got == [RowResult()]


def test_copies_come_before_the_step_that_needs_them(gpu: GpuRunner, expected: list[list[int]]) -> None:
    stream = opened(gpu)[0]
    advance(gpu, [stream])
    spare = next(block for block in range(BLOCKS) if block not in stream.blocks)
    copy = CopyOrder(stream.blocks[0], spare, stream.kv_len)
    row = dataclasses.replace(stream.row(BLOCK), blocks=[spare])
    got = gpu.launch(StepPlan(1, [row], [copy]))().rows
    assert got[0].token_id == expected[0][1]
    assert gpu.launch(StepPlan(2, (), [copy]))().rows == ()


def test_sampled_tokens_are_a_function_of_seed_and_position(gpu: GpuRunner) -> None:
    """Whoever shares the step, and whether a graph runs it or not."""
    stream = opened(gpu)[0]
    advance(gpu, [stream])
    heat = SamplingParams(temperature=1.5, top_k=40, seed=12345)
    row = dataclasses.replace(stream.row(BLOCK), sampling=heat)
    others = opened(gpu)[1:]
    alone = gpu.launch(StepPlan(1, [row]))().rows[0]
    beside = gpu.launch(StepPlan(2, [others[0].row(BLOCK), row, others[1].row(BLOCK)]))().rows[1]
    assert alone == beside
    assert alone.token_id is not None
