"""The Gluon prefill against float64 and, where its arithmetic is the same, against the plain one. Needs a Hopper GPU:
Gluon has no interpreter; that it compiles is `test_sm90`'s."""

import os

import pytest
import torch

from tests.kernels.paged import Case, build, error, expected, fresh_of
from tests.kernels.test_prefill import BOUND, LARGE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Gluon has no interpreter"),
]
CASES = [
    *(case for case in LARGE if case.dim in (64, 128) and not case.fp8),
    Case(lengths=(4096,), counts=(4096,), heads=8, kv_heads=2, dim=128, dtype=torch.bfloat16),
    Case(lengths=(5000, 300), counts=(1, 299), heads=32, kv_heads=8, dim=128, dtype=torch.bfloat16),
    Case(lengths=(1500, 128), counts=(1200, 128), heads=4, kv_heads=4, dim=128, window=128),
    Case(lengths=(1500, 1), counts=(1500, 1), heads=4, kv_heads=4, dim=64, window=1),
]


@pytest.mark.parametrize("ping_pong", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_float64(case: Case, ping_pong: bool, device: torch.device) -> None:
    from compute.kernels.gpu.hopper_prefill import hopper_prefill, supports

    paged = build(case, device)
    assert supports(paged.kv, torch.cuda.get_device_capability())
    for _ in range(3):
        out = torch.full_like(paged.q, float("nan"))
        rows = (paged.tables, paged.starts, paged.lengths)
        hopper_prefill(paged.q, out, paged.kv, *rows, max(case.counts), case.scores, ping_pong)
        assert error(out, expected(paged)) < BOUND[case.dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whole_prompts_need_no_pool(case: Case, device: torch.device) -> None:
    """Rows whose first token is new take keys and values from the step's own; what others have there is not read."""
    from compute.kernels.gpu.hopper_prefill import hopper_prefill

    paged = build(case, device)
    fresh, exact = fresh_of(paged), expected(paged)
    for row, (length, count) in enumerate(zip(case.lengths, case.counts, strict=True)):
        if length == count:
            blocks = paged.tables[row, : -(-length // case.block_size)].long()
            paged.pool[blocks] = float("nan")
    out = torch.full_like(paged.q, float("nan"))
    rows = (paged.tables, paged.starts, paged.lengths)
    hopper_prefill(paged.q, out, paged.kv, *rows, max(case.counts), case.scores, fresh=fresh)
    assert error(out, exact) < BOUND[case.dtype]


@pytest.mark.parametrize("case", [case for case in LARGE if case.fp8][:2], ids=str)
def test_a_scaled_cache_is_the_plain_kernels(case: Case, device: torch.device) -> None:
    from compute.kernels.gpu.hopper_prefill import supports

    assert not supports(build(case, device).kv, torch.cuda.get_device_capability())
