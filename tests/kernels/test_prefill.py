"""Prefill attention: ragged chunks of new tokens over paged prefixes, against float64."""

import pytest
import torch

from compute.kernels.gpu.prefill import prefill
from tests.kernels.paged import Case, build, error, expected

BOUND = {torch.float16: 2e-3, torch.bfloat16: 1e-2}

SMALL = [
    Case(lengths=(1, 16, 40, 200), counts=(1, 16, 7, 100)),
    Case(lengths=(90, 170), counts=(90, 33), heads=3, kv_heads=3, dim=80, block_size=32),
    Case(lengths=(70, 5), counts=(40, 5), heads=7, kv_heads=1, dim=96),
    Case(lengths=(150,), counts=(80,), heads=4, kv_heads=2, dim=128, softcap=20.0),
    Case(lengths=(300, 31), counts=(200, 31), heads=2, kv_heads=2, dim=64, block_size=128, window=50),
    Case(lengths=(150,), counts=(150,), heads=2, kv_heads=1, dim=256, window=17, softcap=30.0),
    Case(lengths=(40, 200), counts=(7, 100), heads=6, kv_heads=3, dim=32),
    Case(lengths=(1, 16, 40, 200), counts=(1, 16, 7, 100), fp8=True),
    Case(lengths=(90, 170), counts=(90, 33), heads=3, kv_heads=3, dim=80, block_size=32, fp8=True),
    Case(
        lengths=(300, 31), counts=(200, 31), heads=2, kv_heads=2, dim=128, window=50, softcap=20.0, fp8=True
    ),
    Case(lengths=(700,), counts=(600,), heads=4, kv_heads=2, dim=32, fp8=True),
]
LARGE = [
    Case(
        lengths=(1, 2049, 777, 128, 3000, 16),
        counts=(1, 2049, 700, 100, 513, 5),
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
    for heads, kv_heads in ((32, 8), (8, 8), (16, 1), (14, 2))
    for dim in (32, 64, 80, 96, 128, 256)
    for block_size, dtype, window, softcap in (
        (16, torch.bfloat16, None, None),
        (16, torch.float16, 500, None),
        (64, torch.bfloat16, None, 30.0),
        (128, torch.bfloat16, 500, None),
    )
]


def check(case: Case, device: torch.device) -> None:
    paged = build(case, device)
    out = torch.full_like(paged.q, float("nan"))
    prefill(paged.q, out, paged.kv, paged.tables, paged.starts, paged.lengths, max(case.counts), case.scores)
    assert error(out, expected(paged)) < BOUND[case.dtype]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_equals_float64(case: Case, device: torch.device) -> None:
    check(case, device)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_equals_float64_on_a_gpu(case: Case, device: torch.device) -> None:
    check(case, device)


def test_a_prompt_in_chunks_equals_the_prompt_at_once(device: torch.device) -> None:
    paged = build(Case(lengths=(100,), counts=(100,)), device)
    whole = torch.full_like(paged.q, float("nan"))
    prefill(paged.q, whole, paged.kv, paged.tables, paged.starts, paged.lengths, 100, paged.case.scores)
    parts = torch.full_like(paged.q, float("nan"))
    for start, end in ((0, 37), (37, 38), (38, 100)):
        prefill(
            paged.q[start:end],
            parts[start:end],
            paged.kv,
            paged.tables,
            torch.tensor([0, end - start], dtype=torch.int32, device=device),
            torch.tensor([end], dtype=torch.int32, device=device),
            end - start,
            paged.case.scores,
        )
    assert error(parts, whole.double()) < 1e-3


def test_names_what_does_not_fit(device: torch.device) -> None:
    paged = build(Case(lengths=(20,), counts=(20,)), device)
    out = torch.empty_like(paged.q)
    scores = paged.case.scores
    with pytest.raises(ValueError, match="starts"):
        prefill(paged.q, out, paged.kv, paged.tables, paged.lengths, paged.lengths, 20, scores)
    with pytest.raises(ValueError, match="max_count"):
        prefill(paged.q, out, paged.kv, paged.tables, paged.starts, paged.lengths, 0, scores)
