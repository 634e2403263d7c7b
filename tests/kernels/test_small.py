"""The small kernels: RoPE with the KV write, RMSNorm, gates, block copies; each against plain torch in float64."""

import pytest
import torch
import torch.nn.functional as F

from compute.kernels.gpu.copy_blocks import copy_blocks
from compute.kernels.gpu.gate import gate
from compute.kernels.gpu.hopper_prefill import supports
from compute.kernels.gpu.layer import KVLayer, check_queries, scales_of
from compute.kernels.gpu.norm import add_norm
from compute.kernels.gpu.rope_kv_write import rope_kv_write
from compute.model.hf_config import Rope
from compute.model.rope import RotaryTable
from tests.kernels.paged import Case, moved, poisoned

BOUND = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
# exp overflows to infinity where a gate is closed; only the interpreter says so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
GPU_BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)


def error(answer: torch.Tensor, exact: torch.Tensor) -> float:
    return float((answer.double() - exact).norm() / exact.norm())


def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize(("rows", "size"), [(1, 576), (5, 1000)])
def test_norm_of_x_alone(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(rows, size, device=device).to(dtype)
    weight = torch.randn(size, device=device)
    assert error(add_norm(x, None, weight, 1e-5), normed(x, weight, 1e-5)) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
def test_add_norm_adds_in_place_and_norms_what_it_stored(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(3, 2 * 640, device=device).to(dtype)[:, :640]  # rows that are not dense
    residual = torch.randn(3, 640, device=device).to(dtype)
    weight = torch.randn(640, device=device)
    added = (x.float() + residual.float()).to(dtype)
    out = add_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, added)
    assert error(out, normed(added, weight, 1e-6)) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gate(activation: str, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.cat((torch.randn(4, 2 * 1500) * 3, torch.full((1, 3000), -60.0))).to(device).to(dtype)
    left, right = x.double().chunk(2, -1)
    exact = F.silu(left) if activation == "silu" else F.gelu(left, approximate=activation[5:] or "none")
    assert error(gate(x, activation), exact * right) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize(("with_norms", "keep_keys"), [(False, False), (True, True)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"), [(4, 2, 64, 16), (7, 1, 80, 32), (5, 5, 128, 16)]
)
def test_rope_and_kv_write(
    heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    with_norms: bool,
    keep_keys: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """q, and k where kept, is turned in place; k and v land in their slots, and no other slot changes."""
    tokens, layer = 5, 1
    pool = torch.full((6, 2, 2, kv_heads, block_size, dim), float("nan"), dtype=dtype, device=device)
    qkv = torch.randn(tokens + 1, heads + 2 * kv_heads, dim, device=device).to(dtype)
    before = qkv.clone()
    table = RotaryTable(Rope(kind="default", theta=10_000.0), dim, device)
    positions = torch.tensor([0, 1, 17, 100, 1000], device=device)
    blocks = torch.tensor([3, 3, 0, -1, 5], device=device)
    slots = torch.tensor([0, 1, block_size - 1, 0, 7], device=device)
    weights = torch.randn(2, dim, device=device)
    norms = (weights[0], weights[1], 1e-6) if with_norms else None
    rope_kv_write(
        qkv.view(tokens + 1, -1),
        KVLayer(pool, layer),
        table.table,
        positions,
        blocks,
        slots,
        norms,
        keep_keys,
    )

    x = before[:tokens].double()
    q, k, v = x.split((heads, kv_heads, kv_heads), 1)
    if with_norms:
        q, k = normed(q, weights[0], 1e-6), normed(k, weights[1], 1e-6)
    angles = positions.double()[:, None] * (
        10_000.0 ** (-torch.arange(0, dim, 2, device=device).double() / dim)
    )
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def turned(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    real = [0, 1, 2, 4]
    assert error(qkv[real, :heads], turned(q)[real]) < BOUND[dtype]
    assert torch.equal(qkv[[3, 5]], before[[3, 5]])  # padding
    kept = turned(k)[real] if keep_keys else k[real]
    assert error(qkv[real, heads : heads + kv_heads], kept) < BOUND[dtype]
    assert torch.equal(qkv[:, heads + kv_heads :], before[:, heads + kv_heads :])
    for token in real:
        stored = pool[blocks[token], layer, :, :, slots[token]]
        assert error(stored[0], turned(k)[token]) < BOUND[dtype]
        assert torch.equal(stored[1].double(), v[token])
        pool[blocks[token], layer, :, :, slots[token]] = float("nan")
    assert pool.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize(("layers", "kv_heads", "block_size", "dim"), [(3, 3, 16, 80), (2, 8, 32, 128)])
def test_copies_the_first_slots_of_every_layer(
    layers: int, kv_heads: int, block_size: int, dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    pool = torch.randn(6, layers, 2, kv_heads, block_size, dim, device=device).to(dtype)
    exact = pool.clone()
    orders = [(0, 3, 5), (0, 4, block_size), (2, 1, 1)]
    for source, destination, slots in orders:
        exact[destination, :, :, :, :slots] = exact[source, :, :, :, :slots]
    copy_blocks(pool, torch.tensor(orders, dtype=torch.int32, device=device))
    assert torch.equal(pool, exact)


def e4m3_pool(blocks: int, layers: int, kv_heads: int, block_size: int, dim: int) -> torch.Tensor:
    """All bytes 0xFF: NaN, as elements and as scales."""
    case = Case(
        lengths=(), counts=(), kv_heads=kv_heads, dim=dim, block_size=block_size, layers=layers, fp8=True
    )
    return poisoned(case, blocks, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize(("kv_heads", "block_size", "dim"), [(2, 16, 64), (1, 32, 80), (3, 16, 32)])
def test_e4m3_is_written_with_the_scale_of_its_row(
    kv_heads: int, block_size: int, dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    """As the same write into a wide pool, quantised by torch; free slots and their scales stay as they were."""
    heads, tokens, layer = 4, 4, 1
    pool = moved(e4m3_pool(6, 2, kv_heads, block_size, dim), device)
    wide = torch.full(pool.shape, float("nan"), dtype=dtype, device=device)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim, device=device).to(dtype) * 3
    qkv[1] = 0
    qkv[0] *= 1e-3
    table = RotaryTable(Rope(kind="default", theta=10_000.0), dim, device)
    positions = torch.tensor([0, 9, 17, 1000], device=device)
    blocks, slots = (
        torch.tensor([3, 3, -1, 5], device=device),
        torch.tensor([0, 1, 0, block_size - 1], device=device),
    )
    other = qkv.clone()
    for into, x in ((pool, qkv), (wide, other)):
        rope_kv_write(x.view(tokens, -1), KVLayer(into, layer), table.table, positions, blocks, slots)
    assert torch.equal(qkv, other)
    scales = scales_of(pool)
    for token in (0, 1, 3):
        place = (blocks[token], layer, slice(None), slice(None), slots[token])
        exact, scale = wide[place].double(), scales[place]
        peak = exact.abs().amax(-1)
        assert torch.allclose(scale.double(), torch.where(peak > 0, peak / 448, 1.0), rtol=2 * BOUND[dtype])
        if token == 1:
            assert torch.equal(pool[place].double(), exact)
        else:
            assert error(pool[place].double() * scale[..., None].double(), exact) < 0.04
            assert (pool[place].float().abs().amax(-1) == 448).all()
        pool[place] = scales[place] = float("nan")
    assert pool.float().isnan().all()
    assert scales.isnan().all()


def test_scales_are_copied_with_their_slots(device: torch.device) -> None:
    pool = e4m3_pool(6, 3, 3, 16, 80)
    pool.copy_(torch.randn(pool.shape))
    scales_of(pool).copy_(torch.rand(pool.shape[:-1]))
    exact, scales = pool.float(), scales_of(pool).clone()
    orders = [(0, 3, 5), (0, 4, 16), (2, 1, 1)]
    for source, destination, slots in orders:
        exact[destination, :, :, :, :slots] = exact[source, :, :, :, :slots]
        scales[destination, :, :, :, :slots] = scales[source, :, :, :, :slots]
    copied = moved(pool, device)
    copy_blocks(copied, torch.tensor(orders, dtype=torch.int32, device=device))
    assert torch.equal(copied.float().cpu(), exact)
    assert torch.equal(scales_of(copied).cpu(), scales)


def test_a_pool_of_e4m3_needs_room_for_its_scales(device: torch.device) -> None:
    with pytest.raises(ValueError, match="fewer than 2048 and 32 float32 scales"):
        KVLayer(torch.zeros(2, 1, 2, 1, 16, 64).to(torch.float8_e4m3fn), 0)
    with pytest.raises(ValueError, match="within a block"):
        KVLayer(e4m3_pool(2, 1, 2, 16, 64).transpose(3, 4), 0)
    kv = KVLayer(moved(e4m3_pool(2, 1, 2, 16, 64), device), 0)
    q = torch.zeros(1, 4, 64, device=device)
    with pytest.raises(ValueError, match="float32"):
        check_queries(q, q, kv)
    with pytest.raises(ValueError, match=r"out\.dtype is torch.bfloat16"):
        check_queries(q.half(), q.bfloat16(), kv)
    assert not supports(kv, (9, 0))


def test_launchers_name_what_does_not_fit(device: torch.device) -> None:
    x = torch.randn(2, 64, device=device).half()
    pool = torch.zeros(2, 1, 2, 1, 16, 64, device=device).half()
    with pytest.raises(ValueError, match="float32"):
        add_norm(x, None, torch.ones(64, device=device).half(), 1e-5)
    with pytest.raises(ValueError, match="relu"):
        gate(x, "relu")
    with pytest.raises(ValueError, match="head_dim 72"):
        KVLayer(torch.zeros(2, 1, 2, 1, 16, 72).half(), 0)
    with pytest.raises(ValueError, match="block_size 24"):
        KVLayer(torch.zeros(2, 1, 2, 1, 24, 64).half(), 0)
    with pytest.raises(ValueError, match="float32"):
        KVLayer(torch.zeros(2, 1, 2, 1, 16, 64), 0)
    with pytest.raises(ValueError, match="int32"):
        copy_blocks(pool, torch.zeros(1, 3, dtype=torch.int64, device=device))


@pytest.mark.gpu
def test_offsets_beyond_32_bits(device: torch.device) -> None:
    """A pool of more than 2^32 elements: the last block is far above what 32 bits address."""
    blocks, shape = 70, (32, 2, 8, 128, 1024 // 8)
    pool = torch.empty((blocks + 500, *shape), dtype=torch.bfloat16, device=device)
    assert pool.numel() > 2**32
    last = len(pool) - 1
    pool[0].normal_()
    copy_blocks(pool, torch.tensor([(0, last, 128)], dtype=torch.int32, device=device))
    assert torch.equal(pool[last], pool[0])
