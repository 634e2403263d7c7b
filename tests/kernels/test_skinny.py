"""Products of a few rows against float64: ragged sizes, cuts of K, gates, rows that stay apart."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from compute.kernels.gpu.skinny import MAX_ROWS, Scratch, Tile, skinny

GPU_BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
BOUND = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
# exp overflows to infinity where a gate is closed; only the interpreter says so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def tile(cuts: int = 1, block_k: int = 64) -> Tile:
    return Tile(block_n=64, block_k=block_k, warps=4, stages=3, cuts=cuts, ahead=128)


def error(answer: torch.Tensor, exact: torch.Tensor) -> float:
    return float((answer.double() - exact).norm() / exact.norm())


def drawn(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias: outputs of size 1."""
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(dtype)
    return x, weight, torch.randn(outputs, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize("cuts", [1, 2, 3])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 192, 256), (5, 100, 336), (16, 65, 208)])
def test_product(
    rows: int,
    outputs: int,
    inputs: int,
    with_bias: bool,
    cuts: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    x, weight, bias = drawn(rows, outputs, inputs, dtype, device)
    answer = skinny(x, weight, bias if with_bias else None, tile(cuts), Scratch.of(device))
    exact = F.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    assert answer.shape == exact.shape
    assert error(answer, exact) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gated_product(activation: str, cuts: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = drawn(3, 2 * 75, 160, dtype, device)
    x[1] *= 40.0  # gates wide open and closed
    answer = skinny(x, weight, bias, tile(cuts), Scratch.of(device), activation)
    left, right = F.linear(x.double(), weight.double(), bias.double()).chunk(2, -1)
    gate = F.silu(left) if activation == "silu" else F.gelu(left, approximate=activation[5:] or "none")
    assert answer.shape == (3, 75)
    assert error(answer, gate * right) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BF16])
@pytest.mark.parametrize("cuts", [1, 3])
def test_a_row_has_the_same_bits_in_every_batch(cuts: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = drawn(MAX_ROWS, 96, 320, dtype, device)
    scratch = Scratch.of(device)
    full = skinny(x, weight, bias, tile(cuts), scratch)
    for rows in (1, 2, 7):
        assert torch.equal(skinny(x[:rows], weight, bias, tile(cuts), scratch), full[:rows])
    assert torch.equal(skinny(x[5:6], weight, bias, tile(cuts), scratch), full[5:6])


@pytest.mark.parametrize("cuts", [1, 2])
def test_a_row_that_is_not_finite_stays_alone(cuts: int, device: torch.device) -> None:
    x, weight, _ = drawn(4, 70, 208, torch.float16, device)
    clean = skinny(x, weight, None, tile(cuts), Scratch.of(device))
    x[2] = float("nan")
    x[0, 17] = float("inf")
    answer = skinny(x, weight, None, tile(cuts), Scratch.of(device))
    assert answer[2].isnan().all()
    assert not answer[0].isfinite().any()
    assert torch.equal(answer[[1, 3]], clean[[1, 3]])


def test_rows_of_x_may_lie_apart(device: torch.device) -> None:
    x, weight, _ = drawn(3, 64, 64, torch.float16, device)
    wide = torch.full((3, 192), float("nan"), device=device).half()
    wide[:, 64:128] = x
    scratch = Scratch.of(device)
    answer = skinny(wide[:, 64:128], weight, None, tile(2), scratch)
    assert torch.equal(answer, skinny(x, weight, None, tile(2), scratch))


def test_scratch_is_clean_behind_every_launch(device: torch.device) -> None:
    """More cuts than turns of the loop: some programs have nothing to add, and arrive all the same."""
    x, weight, _ = drawn(2, 130, 128, torch.float16, device)
    scratch = Scratch.of(device)
    scratch.sums.fill_(float("nan"))
    answer = skinny(x, weight, None, tile(5), scratch)
    assert error(answer, F.linear(x.double(), weight.double())) < BOUND[torch.float16]
    assert not scratch.arrivals.any()


def test_no_rows(device: torch.device) -> None:
    _, weight, _ = drawn(1, 64, 64, torch.float16, device)
    assert skinny(weight[:0], weight, None, tile(), Scratch.of(device)).shape == (0, 64)


def test_launcher_names_what_does_not_fit(device: torch.device) -> None:
    x, weight, bias = drawn(MAX_ROWS + 1, 75, 64, torch.float16, device)
    scratch = Scratch.of(device)
    with pytest.raises(ValueError, match="17 rows are more than 16"):
        skinny(x, weight, None, tile(), scratch)
    x = x[:2]
    with pytest.raises(ValueError, match="float32"):
        skinny(x.float(), weight.float(), None, tile(), scratch)
    with pytest.raises(ValueError, match=r"weight must be \[N, 64\]"):
        skinny(x, weight.T, None, tile(), scratch)
    with pytest.raises(ValueError, match="24 inputs"):
        skinny(x[:, :24], weight[:, :24].contiguous(), None, tile(), scratch)
    with pytest.raises(ValueError, match=r"bias must be \[75\]"):
        skinny(x, weight, bias[:3], tile(), scratch)
    with pytest.raises(ValueError, match="gate and up"):
        skinny(x, weight, None, tile(), scratch, "silu")
    with pytest.raises(ValueError, match="relu"):
        skinny(x, weight, None, tile(), scratch, "relu")
    with pytest.raises(ValueError, match="scratch"):
        skinny(x, weight, None, replace(tile(), cuts=10_000), scratch)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("outputs", "inputs", "cuts"), [(4096, 14_336, 4), (6144, 4096, 3), (28_672, 4096, 1)]
)
def test_graph_of_dependent_products(outputs: int, inputs: int, cuts: int, device: torch.device) -> None:
    """Each launch reads what the one before wrote, and starts before that one has ended."""
    x, weight, _ = drawn(MAX_ROWS, outputs, inputs, torch.bfloat16, device)
    back = torch.randn(inputs, outputs, device=device).mul_(outputs**-0.5).bfloat16()
    wide = Tile(block_n=64, block_k=128, warps=4, stages=5, cuts=cuts, ahead=256)
    scratch = Scratch.of(device)

    def run() -> torch.Tensor:
        y = x
        for _ in range(6):
            y = skinny(skinny(y, weight, None, wide, scratch), back, None, wide, scratch)
        return y

    expected = run()
    exact = x.double()
    for _ in range(6):
        exact = F.linear(F.linear(exact, weight.double()), back.double())
    assert error(expected, exact) < 2e-2
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()
    for _ in range(20):
        answer.fill_(float("nan"))
        graph.replay()
        assert torch.equal(answer, expected)
