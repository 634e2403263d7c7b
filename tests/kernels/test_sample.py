"""The GPU's sampler draws the tokens that the CPU's does, for rows without adjustments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compute.filters import least_kept
from compute.kernels.gpu.sample import NOT_FINITE, NOTHING_TO_DRAW, Draws, SampleScratch, sample
from compute.philox import uniform
from compute.plan import StepRow
from compute.request import SamplingParams
from compute.sampler import Sampler
from kvmanager.messages import SequenceId

INF, NAN = float("inf"), float("nan")
CLOSE = 1e-6  # relative distance to a border at which float32 may fall on the other side
# Infinite differences are weights of 0; only the interpreter warns of them.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide):RuntimeWarning")

FILTERS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=50.0),
    SamplingParams(top_k=1),
    SamplingParams(top_k=5),
    SamplingParams(top_k=40, temperature=2.0),
    SamplingParams(top_p=0.5),
    SamplingParams(top_p=0.95, temperature=1.5),
    SamplingParams(top_p=0.0),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=50, top_p=0.75),
    SamplingParams(top_k=20, top_p=0.75, min_p=0.0625, temperature=0.75),
    SamplingParams(top_k=10**6),
]


def as_float32(params: SamplingParams) -> SamplingParams:
    """The numbers that the GPU is given."""
    heat, p, least = (float(np.float32(x)) for x in (params.temperature, params.top_p, params.min_p))
    return replace(params, temperature=heat, top_p=p, min_p=least)


def step_row(params: SamplingParams) -> StepRow:
    return StepRow(
        sequence=SequenceId(bytes(16)),
        epoch=1,
        token_ids=[1],
        start=4,
        blocks=[0],
        sample=True,
        history=(1, 1, 1, 1, 1),
        prompt_len=5,
        sampling=as_float32(params),
    )


def numbers(params: list[SamplingParams]) -> torch.Tensor:
    return torch.from_numpy(uniform([each.seed for each in params], [5] * len(params)))


def drawn_by_gpu(
    logits: torch.Tensor, params: list[SamplingParams], number: torch.Tensor | None = None
) -> list[int]:
    rows, size = logits.shape
    device = logits.device

    def column(values: list[float], kind: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=kind, device=device)

    draws = Draws(
        wanted=torch.ones(rows, dtype=torch.int32, device=device),
        temperature=column([each.temperature for each in params], torch.float32),
        top_k=column([each.top_k for each in params], torch.int32),
        top_p=column([each.top_p for each in params], torch.float32),
        min_p=column([each.min_p for each in params], torch.float32),
        uniform=(numbers(params) if number is None else number).to(device),
    )
    drawn = torch.full((rows,), -9, dtype=torch.int32, device=device)
    sample(logits, draws, drawn, SampleScratch.allocate(rows, size, device))
    return drawn.tolist()


def may_be(token: int, logits: torch.Tensor, params: SamplingParams, number: float) -> bool:
    """Whether the token's interval, or that of slightly other filters, comes within CLOSE of the number."""
    exact = logits.double()
    weights = ((exact - exact.max()) / params.temperature).exp()
    for slack in (-CLOSE, 0.0, CLOSE):
        near = replace(
            params, top_p=min(params.top_p * (1 + slack), 1.0), min_p=min(params.min_p * (1 + slack), 1.0)
        )
        kept = weights.masked_fill(weights < least_kept(weights[None], [near])[0], 0.0)
        running = kept.cumsum(0) / kept.sum()
        before = float(running[token] - kept[token] / kept.sum())
        if kept[token] > 0 and before - CLOSE <= number <= float(running[token]) + CLOSE:
            return True
    return False


def check(logits: torch.Tensor, params: list[SamplingParams]) -> None:
    """Equal tokens, but for the few rows whose number is at a border."""
    mine = drawn_by_gpu(logits, params)
    host = logits.cpu()
    theirs = [each.token_id for each in Sampler(host.shape[1]).sample(host, [step_row(p) for p in params])]
    number = numbers(params)
    others = [i for i, (left, right) in enumerate(zip(mine, theirs, strict=True)) if left != right]
    for i in others:
        assert may_be(mine[i], host[i], as_float32(params[i]), float(number[i])), (
            mine[i],
            theirs[i],
            params[i],
        )
    assert len(others) <= len(params) // 50 + 1


def random_case(seed: int, rows: int, size: int, spread: float) -> tuple[torch.Tensor, list[SamplingParams]]:
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=make) * spread
    params = [replace(FILTERS[(seed + i) % len(FILTERS)], seed=1000 * seed + i) for i in range(rows)]
    return logits, params


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "spread"), [(1, 1.0), (37, 3.0), (1000, 3.0), (5001, 2.0)])
def test_draws_what_the_cpu_draws(size: int, spread: float, dtype: torch.dtype, device: torch.device) -> None:
    logits, params = random_case(size, len(FILTERS), size, spread)
    check(logits.to(dtype).to(device), params)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_draws_what_the_cpu_draws_over_many_rows(seed: int, device: torch.device) -> None:
    logits, params = random_case(seed, 4 * len(FILTERS), 301 + 500 * seed, 1.0 + seed % 5)
    check(logits.to(device), params)


SHORTLISTED = [
    SamplingParams(top_k=40, temperature=1.5),
    SamplingParams(top_k=70, top_p=0.75),
    SamplingParams(top_p=0.5),  # the short list holds it
    SamplingParams(top_p=0.75, temperature=8.0),  # it does not
    SamplingParams(top_k=3000, top_p=0.9, temperature=4.0),  # more than there may be in one
    SamplingParams(min_p=0.01, temperature=2.0),
]


@pytest.mark.parametrize("clustered", [False, True])
def test_a_long_row_by_its_short_list_or_whole(clustered: bool, device: torch.device) -> None:
    """Sorted logits stand in few groups: as many as the list holds do not stop at its bound."""
    make = torch.Generator().manual_seed(3)
    logits = torch.randn(len(SHORTLISTED), 20_000, generator=make) * 3
    if clustered:
        logits = logits.sort(dim=1, descending=True).values
    check(logits.to(device), [replace(each, seed=i) for i, each in enumerate(SHORTLISTED)])


def test_a_list_that_overflows_gives_way_to_the_row(device: torch.device) -> None:
    """All logits tie, so all are above the bound."""
    params = [SamplingParams(top_k=9), SamplingParams(top_p=0.5), SamplingParams(top_k=9, top_p=0.25)]
    logits = torch.zeros(3, 9000, device=device)
    check(logits, [replace(each, seed=i) for i, each in enumerate(params)])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [49_152, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_vocabularies_on_a_gpu(size: int, dtype: torch.dtype, device: torch.device) -> None:
    for seed in range(4):
        logits, params = random_case(seed, 128, size, 1.0 + seed)
        check(logits.to(dtype).to(device), params)


def test_greedy_takes_the_first_of_the_largest(device: torch.device) -> None:
    logits = torch.zeros(3, 9000, device=device)
    logits[0, [700, 5000, 8999]] = 2.0
    logits[1] = -INF
    logits[1, 8000] = -3e38
    logits[2, 0] = -0.0
    assert drawn_by_gpu(logits, [SamplingParams(temperature=0.0)] * 3) == [700, 8000, 0]


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_faults_are_their_rows_own(params: SamplingParams, device: torch.device) -> None:
    logits = torch.randn(6, 5000, device=device)
    logits[0, 4999] = NAN
    logits[1, 3] = INF
    logits[2] = -INF
    logits[3, 1] = -INF
    logits[4] = -INF
    logits[4, 7] = -NAN
    drawn = drawn_by_gpu(logits, [params] * 6)
    assert [drawn[0], drawn[1], drawn[2], drawn[4]] == [NOT_FINITE, NOT_FINITE, NOTHING_TO_DRAW, NOT_FINITE]
    assert drawn[3] not in {1, -1, -2}
    assert drawn[5] >= 0


def test_excluded_tokens_are_not_drawn_and_the_ends_of_the_interval_are(device: torch.device) -> None:
    logits = torch.full((4, 6000), -INF, device=device)
    logits[:, [11, 4097, 5999]] = torch.tensor([1.0, 1.0, 1.0], device=device)
    ends = torch.tensor([0.0, 1 - 2.0**-53, 0.0, 1 - 2.0**-53], dtype=torch.float64)
    params = [SamplingParams()] * 2 + [SamplingParams(top_k=2, top_p=0.9, min_p=0.5)] * 2
    assert drawn_by_gpu(logits, params, ends) == [11, 5999, 11, 5999]


@pytest.mark.parametrize("heat", [1e-30, 1e-10, 1e30, INF])
def test_extreme_temperatures(heat: float, device: torch.device) -> None:
    logits = torch.full((1, 5000), -INF, device=device)
    logits[0, [5, 4500]] = torch.tensor([-1e30, 3e30 if heat < 1 else -1e30], device=device)
    late = torch.tensor([0.9], dtype=torch.float64)
    early = torch.tensor([0.1], dtype=torch.float64)
    assert drawn_by_gpu(logits, [SamplingParams(temperature=heat)], late) == [4500]
    assert drawn_by_gpu(logits, [SamplingParams(temperature=heat)], early) == [4500 if heat < 1 else 5]


def test_a_token_does_not_depend_on_what_shares_the_batch(device: torch.device) -> None:
    logits, params = random_case(5, len(FILTERS), 9000, 2.5)
    logits = logits.to(device)
    together = drawn_by_gpu(logits, params)
    alone = [drawn_by_gpu(logits[i : i + 1], params[i : i + 1])[0] for i in range(len(params))]
    assert together == alone


def test_rows_that_nobody_wants_stay_as_they_were(device: torch.device) -> None:
    logits = torch.randn(3, 300, device=device)
    draws = Draws.allocate(3, device)
    draws.wanted[1] = 1
    drawn = torch.full((3,), -9, dtype=torch.int32, device=device)
    sample(logits, draws, drawn, SampleScratch.allocate(4, 300, device))
    assert drawn.tolist() == [-9, int(logits[1].argmax()), -9]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        pytest.param(SamplingParams(top_k=4), marks=pytest.mark.full),
        SamplingParams(top_p=0.75, temperature=1.5),
        pytest.param(SamplingParams(min_p=0.25, top_k=6, top_p=0.9), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: SamplingParams, device: torch.device) -> None:
    """Over evenly spread numbers each token's share is its probability, to within the spacing."""
    count = 50
    row = torch.randn(12, generator=torch.Generator().manual_seed(8)) * 1.5
    number = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = torch.tensor(drawn_by_gpu(row.repeat(count, 1).to(device), [params] * count, number))
    weights = ((row.double() - row.max()) / params.temperature).exp()
    weights = weights.masked_fill(weights < least_kept(weights[None], [params])[0], 0.0)
    share = torch.bincount(drawn, minlength=12).double() / count
    assert (share - weights / weights.sum()).abs().max() < 1.01 / count
    assert not share[weights == 0].any()


@pytest.mark.gpu
def test_a_captured_graph_follows_parameters_and_logits(device: torch.device) -> None:
    size, rows = 128_256, len(FILTERS)
    logits, params = random_case(7, rows, size, 2.0)
    expected = drawn_by_gpu(logits.to(device), params)
    static, draws = torch.zeros(rows, size, device=device), Draws.allocate(rows, device)
    drawn = torch.zeros(rows, dtype=torch.int32, device=device)
    scratch = SampleScratch.allocate(rows, size, device)
    sample(static, draws, drawn, scratch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sample(static, draws, drawn, scratch)
    static.copy_(logits)
    draws.wanted.fill_(1)
    for name in ("temperature", "top_k", "top_p", "min_p"):
        getattr(draws, name).copy_(torch.tensor([getattr(each, name) for each in params]))
    draws.uniform.copy_(numbers(params))
    graph.replay()
    assert drawn.tolist() == expected


def test_names_what_does_not_fit(device: torch.device) -> None:
    logits, draws = torch.zeros(2, 100, device=device), Draws.allocate(2, device)
    drawn = torch.zeros(2, dtype=torch.int32, device=device)
    scratch = SampleScratch.allocate(2, 100, device)
    with pytest.raises(ValueError, match="float64"):
        sample(logits.double(), draws, drawn, scratch)
    with pytest.raises(ValueError, match="drawn must be dense"):
        sample(logits, draws, drawn.long(), scratch)
    with pytest.raises(ValueError, match="top_p must be dense"):
        sample(logits, replace(draws, top_p=draws.uniform), drawn, scratch)
    with pytest.raises(ValueError, match="scratch"):
        sample(torch.zeros(2, 5000, device=device), draws, drawn, scratch)
