"""The attention benchmarks compute attention: naive and tiled give the same, KV heads fit as often as by hand."""

import pytest
import torch

from benchmarks import flash, heads
from benchmarks.kv_cache import course, growth


@pytest.mark.parametrize("tokens", [64, 192])
def test_naive_and_tiled_attention_agree_with_float64(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "CHUNK", 64)
    with torch.inference_mode():
        place = flash.OnCpu(tokens)
        kv_heads, _, dim = place.qkv[1].shape
        exact = flash.reference(*place.qkv, tokens)
        assert exact.shape == (kv_heads, 4, tokens, dim)
        for answer in (flash.naive(*place.qkv).view(exact.shape), place.grouped(place.tiled())):
            assert float((answer.double() - exact).norm() / exact.norm()) < 5e-3
        assert flash.error(place) < 5e-3


def test_a_query_sees_no_later_key() -> None:
    q, k = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    v = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 8)
    answer = flash.naive(q, k, v)[0, :, 0]
    assert answer[0] == 0
    assert bool((answer <= torch.arange(6.0)).all())


def test_memory_that_there_is_not_is_a_result() -> None:
    def greedy() -> torch.Tensor:
        raise torch.OutOfMemoryError("no")

    assert flash.peak(flash.OnCpu, greedy) is None  # type: ignore[arg-type]


def test_a_process_that_grows_is_seen_to_grow() -> None:
    assert flash.OnCpu.peak_bytes(lambda: torch.ones(2**24)) >= 2**25


def test_requests_that_fit_by_hand() -> None:
    """Of 13.5 GiB, with a block kept back: 16 tokens of MHA are 8 MiB."""
    found = {name: heads.memory(kv_heads) for name, kv_heads in heads.KINDS.items()}
    assert [row["token_bytes"] for row in found.values()] == [512 * 1024, 128 * 1024, 16 * 1024]
    assert [row["blocks"] for row in found.values()] == [1728, 6912, 55296]
    assert [row["requests"] for row in found.values()] == [13, 53, 431]


def test_growth_tells_linear_from_quadratic() -> None:
    linear = [[0.5 * (i + 1) for i in range(64)]] * 3
    square = [[0.5 * (i + 1) ** 2 for i in range(64)]] * 3
    assert [count for count, _ in course(linear)] == [*range(8, 65, 8)]
    assert growth(course(linear)) == pytest.approx(2, rel=1e-3)
    assert growth(course(square)) == pytest.approx(4, rel=1e-3)
