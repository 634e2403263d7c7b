"""Decode attention: one query a row over paged KV, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.layer import scales_of
from compute.kernels.gpu.splits import MAX_SPLITS, MIN_SPLIT_TOKENS, Tile, split_count
from tests.kernels.paged import Case, build, error, expected, quantised

BOUND = {torch.float16: 2e-3, torch.bfloat16: 1e-2}

SMALL = [
    Case(lengths=(1, 16, 17, 150), counts=(1, 1, 1, 1)),
    Case(lengths=(33, 129), counts=(1, 1), heads=3, kv_heads=3, dim=80, block_size=32),
    Case(lengths=(70, 5), counts=(1, 1), heads=7, kv_heads=1, dim=96),
    Case(lengths=(140,), counts=(1,), heads=8, kv_heads=2, dim=128, softcap=20.0),
    Case(lengths=(200, 31), counts=(1, 1), heads=2, kv_heads=1, dim=256, block_size=128, window=40),
    Case(lengths=(200, 31, 600), counts=(1, 1, 1), heads=6, kv_heads=3, dim=32),
    Case(lengths=(1, 16, 17, 150), counts=(1, 1, 1, 1), fp8=True),
    Case(lengths=(200, 31), counts=(1, 1), heads=3, kv_heads=3, dim=80, block_size=32, window=40, fp8=True),
    Case(lengths=(140,), counts=(1,), heads=8, kv_heads=2, dim=128, softcap=20.0, fp8=True),
    Case(lengths=(600, 5), counts=(1, 1), heads=4, kv_heads=2, dim=32, fp8=True),
]
LARGE = [
    Case(
        lengths=(1, 4097, 777, 128, 2048, 16),
        counts=(1,) * 6,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        block_size=block_size,
        dtype=dtype,
        window=window,
        softcap=softcap,
        fp8=fp8,
    )
    for fp8 in (False, True)
    for heads, kv_heads in ((32, 8), (8, 8), (32, 1), (14, 2))
    for dim in (32, 64, 80, 96, 128, 256)
    for block_size, dtype, window, softcap in (
        (16, torch.bfloat16, None, None),
        (16, torch.float16, 1000, None),
        (64, torch.bfloat16, None, 30.0),
        (128, torch.bfloat16, 1000, None),
    )
]


def check(case: Case, device: torch.device, splits: int) -> None:
    paged = build(case, device)
    out = torch.full_like(paged.q, float("nan"))
    group = case.heads // case.kv_heads
    scratch = Scratch.allocate(len(case.lengths), splits, paged.kv, group) if splits > 1 else None
    for _ in range(2):  # the second launch finds the arrivals as the first left them
        out.fill_(float("nan"))
        decode(paged.q, out, paged.kv, paged.tables, paged.lengths, case.scores, scratch)
        assert error(out, expected(paged)) < BOUND[case.dtype]
    if scratch is not None:
        assert not scratch.arrivals.any()


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_float64(case: Case, splits: int, device: torch.device) -> None:
    check(case, device, splits)


@pytest.mark.parametrize("splits", [1, 3])
def test_e4m3_is_as_far_from_the_exact_cache_as_its_three_bits_say(splits: int, device: torch.device) -> None:
    case = Case(lengths=(700, 300), counts=(1, 1), heads=8, kv_heads=2, dim=128, fp8=True)
    paged = build(case, device)
    out = torch.full_like(paged.q, float("nan"))
    scratch = Scratch.allocate(2, splits, paged.kv, 4) if splits > 1 else None
    decode(paged.q, out, paged.kv, paged.tables, paged.lengths, case.scores, scratch)
    assert error(out, expected(paged)) < BOUND[case.dtype]
    assert 1e-2 < error(out, expected(paged, paged.exact)) < 5e-2


def test_values_behind_a_sink_keep_their_weight(device: torch.device) -> None:
    """One key takes most of the mass, thousands the rest at e^-11 each: float16 must hold their products."""
    case = Case(lengths=(3000,), counts=(1,), heads=2, kv_heads=1, dim=64, fp8=True)
    paged = build(case, device)
    keys, values = torch.zeros(3000, 1, 64), torch.ones(3000, 1, 64)
    keys[0], values[0] = 1.0, 0.0
    stored, scales = quantised(torch.stack((keys, values)).transpose(1, 2))
    for place, block in enumerate(paged.tables[0].tolist()):
        part = slice(place * 16, min(place * 16 + 16, 3000))
        size = part.stop - part.start
        paged.kv.pool[block, 1, :, :, :size] = stored[:, :, part].to(device)
        scales_of(paged.kv.pool)[block, 1, :, :, :size] = scales[:, :, part].to(device)
    paged.q.fill_(11.0 / 8.0)
    out = torch.empty_like(paged.q)
    decode(paged.q, out, paged.kv, paged.tables, paged.lengths, case.scores, None)
    kept = stored.float() * scales[..., None]
    reference = expected(paged, [(kept[0].transpose(0, 1), kept[1].transpose(0, 1))])
    assert error(out, reference) < 2e-3


def test_more_splits_than_one_merge_turn_holds(device: torch.device) -> None:
    check(Case(lengths=(2300, 300), counts=(1, 1), heads=4, kv_heads=1, dim=256), device, 18)


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 7, 64])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_equals_float64_on_a_gpu(case: Case, splits: int, device: torch.device) -> None:
    check(case, device, splits)


@pytest.mark.gpu
@pytest.mark.parametrize("warps", [2, 4])
def test_merge_of_128_splits_is_not_miscompiled(warps: int, device: torch.device) -> None:
    """The shape that triton 3.5-3.6 was seen to corrupt: 128 splits, d128, bf16, two warps."""
    case = Case(
        lengths=(128 * 128 + 5, 20_000), counts=(1, 1), heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16
    )
    paged = build(case, device)
    out = torch.full_like(paged.q, float("nan"))
    scratch = Scratch.allocate(2, 128, paged.kv, 4)
    for _ in range(20):
        out.fill_(float("nan"))
        decode(paged.q, out, paged.kv, paged.tables, paged.lengths, case.scores, scratch, Tile(64, warps, 3))
        assert error(out, expected(paged)) < 1e-2


def test_a_padding_row_gets_zeros_and_reads_nothing(device: torch.device) -> None:
    paged = build(Case(lengths=(20, 20), counts=(1, 1)), device)
    out = torch.full_like(paged.q, float("nan"))
    paged.lengths[1] = 0
    paged.tables[1] = 2**30
    scratch = Scratch.allocate(2, 2, paged.kv, 2)
    decode(paged.q, out, paged.kv, paged.tables, paged.lengths, paged.case.scores, scratch)
    assert error(out[:1], expected(paged)[:1]) < 2e-3
    assert not out[1].any()


@pytest.mark.gpu
def test_a_captured_graph_follows_lengths_and_tables(device: torch.device) -> None:
    """One graph, captured with other lengths: the device's values count, not the host's at capture."""
    case = Case(lengths=(900, 3000), counts=(1, 1), heads=8, kv_heads=2, dim=128, dtype=torch.bfloat16)
    paged = build(case, device)
    out = torch.full_like(paged.q, float("nan"))
    scratch = Scratch.allocate(2, 16, paged.kv, 4)
    lengths, tables = torch.ones_like(paged.lengths), torch.zeros_like(paged.tables)
    tables[:, 0] = paged.tables[:, 0]
    decode(paged.q, out, paged.kv, tables, lengths, case.scores, scratch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode(paged.q, out, paged.kv, tables, lengths, case.scores, scratch)
    lengths.copy_(paged.lengths)
    tables.copy_(paged.tables)
    out.fill_(float("nan"))
    graph.replay()
    assert error(out, expected(paged)) < 1e-2


@pytest.mark.parametrize(
    ("rows", "longest", "splits"),
    [
        (64, 4096, 1),
        (256, 1024, 1),
        (16, 1024, 1),
        (8, 16_384, 4),
        (1, 65_536, 32),
        (1, 1024, 16),
        (25, 9000, 3),
    ],
)
def test_splits_fill_an_h200(rows: int, longest: int, splits: int) -> None:
    assert split_count(rows, kv_heads=8, group=4, longest=longest, sm_count=132) == splits


@given(
    rows=st.integers(0, 300),
    kv_heads=st.sampled_from([1, 2, 8, 32]),
    group=st.integers(1, 64),
    longest=st.integers(0, 200_000),
    sm_count=st.integers(1, 200),
)
def test_splits_are_bounded_and_long_enough(
    rows: int, kv_heads: int, group: int, longest: int, sm_count: int
) -> None:
    splits = split_count(rows, kv_heads, group, longest, sm_count)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or (splits - 1) * MIN_SPLIT_TOKENS < longest


def test_names_what_does_not_fit(device: torch.device) -> None:
    paged = build(Case(lengths=(20,), counts=(1,)), device)
    out = torch.empty_like(paged.q)
    scores = paged.case.scores
    with pytest.raises(ValueError, match="int32"):
        decode(paged.q, out, paged.kv, paged.tables.long(), paged.lengths, scores, None)
    two = paged.q.repeat(2, 1, 1)
    with pytest.raises(ValueError, match="2 queries for 1 rows"):
        decode(two, torch.empty_like(two), paged.kv, paged.tables, paged.lengths, scores, None)
    scratch = Scratch.allocate(1, 2, paged.kv, 4)
    with pytest.raises(ValueError, match="scratch"):
        decode(paged.q, out, paged.kv, paged.tables, paged.lengths, scores, scratch)
