"""The C decode kernels against the same mathematics in plain torch, one row at a time, in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compute.native import build
from compute.native.ops import Decode, DecodeRows, add_rms_norm, available, silu_mul

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="no C compiler on this machine")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# q heads, kv heads, dim, block size, window, softcap
SHAPES = [
    (9, 3, 64, 16, 0, 0.0),
    (8, 8, 32, 8, 5, 0.0),
    (8, 1, 256, 32, 0, 50.0),
    (4, 2, 80, 16, 20, 30.0),
    (6, 2, 96, 128, 0, 0.0),
    (32, 1, 128, 16, 0, 0.0),
]
LENGTHS = [1, 16, 17, 33, 100, 64, 2]


class Case:
    """A pool whose every unwritten slot is NaN, and one decode token for each of several ragged rows."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, int, int, int, int, float]) -> None:
        torch.manual_seed(0)
        q_heads, kv_heads, dim, block_size, self.window, self.softcap = shape
        self.q_heads, self.layer = q_heads, 1
        self.pool = torch.full((128, 3, 2, kv_heads, block_size, dim), float("nan")).to(dtype)
        self.tables = torch.zeros(len(LENGTHS), 16, dtype=torch.int32)
        free = iter(torch.randperm(128).tolist())
        for row, length in enumerate(LENGTHS):
            for place in range(length):
                if place % block_size == 0:
                    self.tables[row, place // block_size] = next(free)
                if place < length - 1:
                    self.cell(row, place)[:] = torch.randn(2, kv_heads, dim).to(dtype)
        self.positions = torch.tensor(LENGTHS, dtype=torch.int32) - 1
        self.qkv = torch.randn(len(LENGTHS), (q_heads + 2 * kv_heads) * dim).to(dtype)
        angle = torch.rand(len(LENGTHS), dim // 2) * 6
        self.cos, self.sin = angle.cos(), angle.sin()

    def cell(self, row: int, place: int) -> Tensor:
        """K and V of one token slot: [2, kv heads, dim]."""
        block_size = self.pool.shape[4]
        return self.pool[int(self.tables[row, place // block_size]), self.layer, :, :, place % block_size]

    def run(self, rows: slice = slice(None)) -> Tensor:
        dim = self.pool.shape[5]
        kernel = Decode(self.pool, self.q_heads, dim**-0.5, self.softcap)
        qkv, cos, sin = self.qkv[rows].clone(), self.cos[rows].clone(), self.sin[rows].clone()
        where = DecodeRows(self.tables[rows].clone(), self.positions[rows].clone())
        return kernel(self.layer, qkv, (cos, sin), where, self.window)

    def expected(self, row: int) -> Tensor:
        """The row's attention in float64, from the slots that the kernel should have read and written."""
        _, _, _, kv_heads, _, dim = self.pool.shape
        place = int(self.positions[row])
        first = max(0, place - self.window + 1) if self.window else 0
        cells = torch.stack([self.cell(row, at) for at in range(first, place + 1)]).double()
        query = rotated(
            self.qkv[row, : self.q_heads * dim].double().view(-1, dim), self.cos[row], self.sin[row]
        )
        scores = torch.einsum("hgd,shd->hgs", query.view(kv_heads, -1, dim), cells[:, 0]) * dim**-0.5
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return torch.einsum("hgs,shd->hgd", scores.softmax(-1), cells[:, 1]).reshape(-1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos.double().repeat(2) + turned * sin.double().repeat(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_attends_to_its_own_slots_and_nothing_else(dtype: torch.dtype, shape: tuple) -> None:
    """Unwritten slots hold NaN, so a read beyond the length or before the window would show."""
    case = Case(dtype, shape)
    got = case.run()
    for row in range(len(LENGTHS)):
        torch.testing.assert_close(got[row].double(), case.expected(row), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decode_writes_rotated_keys_and_plain_values_into_the_new_slot(dtype: torch.dtype) -> None:
    case = Case(dtype, SHAPES[0])
    case.run()
    for row in range(len(LENGTHS)):
        key, value = case.qkv[row].view(-1, 64)[9:12].double(), case.qkv[row].view(-1, 64)[12:]
        cell = case.cell(row, int(case.positions[row]))
        want = rotated(key, case.cos[row], case.sin[row])
        torch.testing.assert_close(
            cell[0].double(), want, rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2
        )
        assert torch.equal(cell[1], value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_bitwise_the_same_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    case = Case(dtype, SHAPES[0])
    together = case.run()
    for row in range(len(LENGTHS)):
        assert torch.equal(case.run(slice(row, row + 1))[0], together[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_add_rms_norm(dtype: torch.dtype, rows: int) -> None:
    x, residual, weight = (torch.randn(n, 576).to(dtype) for n in (rows, rows, 1))
    total = x + residual
    got = add_rms_norm(x, residual, weight[0], 1e-5, offset=1.0)
    want = F.rms_norm(total.double(), (576,), weight[0].double() + 1, 1e-5)
    assert torch.equal(residual, total)
    torch.testing.assert_close(got.double(), want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = torch.randn(7, 2 * 96).to(dtype) * 20
    want = F.silu(gate_up[:, :96].double()) * gate_up[:, 96:].double()
    relative = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(silu_mul(gate_up).double(), want, rtol=relative, atol=1e-6)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    assert build.library.__wrapped__() is None


def test_a_broken_compiler_is_not_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.library.__wrapped__() is None
