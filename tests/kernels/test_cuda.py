"""The GPU's kernels behind the decoder's seam give what torch's give, over mixed steps of decode rows and chunks."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from compute.batch import Batch, Ints, build
from compute.kernels import cuda
from compute.kernels.cuda import Chunks, CudaKernels, Decode, Step
from compute.kernels.gpu.decode import Scratch
from compute.kernels.gpu.layer import KVLayer, scales_of
from compute.kernels.gpu.linear import GpuLinear
from compute.kernels.gpu.prefill import prefill
from compute.kernels.interface import AttentionSpec
from compute.kernels.torch_cpu import TorchKernels
from compute.model.hf_config import Rope
from compute.model.linear import PlainLinear
from compute.model.rope import RotaryTable
from compute.plan import StepPlan, StepRow
from compute.request import SamplingParams
from kvmanager.messages import SequenceId
from tests.kernels.paged import Case, moved, poisoned, quantised

BLOCK = 16


def row(start: int, count: int, blocks: list[int]) -> StepRow:
    return StepRow(
        sequence=SequenceId(bytes([blocks[0]]) * 16),
        epoch=1,
        token_ids=[7] * count,
        start=start,
        blocks=blocks,
        sample=True,
        history=(),
        prompt_len=start + count,
        sampling=SamplingParams(),
    )


def spec(device: torch.device, *, window: int | None, normed: bool, softcap: float | None) -> AttentionSpec:
    weights = torch.rand(2, 64, device=device) + 0.5
    return AttentionSpec(
        layer=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        scale=0.125,
        softcap=softcap,
        window=window,
        rope=RotaryTable(Rope(kind="default", theta=10_000.0), 64, device),
        q_norm=weights[0] if normed else None,
        k_norm=weights[1] if normed else None,
        norm_eps=1e-6,
    )


def step_of(batch: Batch, pool: torch.Tensor, splits: int = 3) -> Step:
    """The step as the GPU's kernels read it, every block table as wide as the widest."""
    device = pool.device

    def sent(arrays: list[Ints]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays).astype(np.int32)).to(device)

    widest = max(group.tables.shape[1] for group in batch.groups)
    pads = [((0, 0), (0, widest - group.tables.shape[1])) for group in batch.groups]
    tables = sent(
        [np.pad(group.tables, pad, mode="edge") for group, pad in zip(batch.groups, pads, strict=True)]
    )
    lengths = sent([group.lengths for group in batch.groups])
    counts = np.concatenate([group.counts for group in batch.groups])
    singles = int((counts == 1).sum())
    decode = chunks = None
    if singles:
        scratch = Scratch.allocate(singles, splits, KVLayer(pool, 0), 2)
        decode = Decode(tables[:singles], lengths[:singles], scratch)
    if singles < len(counts):
        starts = sent([np.zeros(1, np.int64), np.cumsum(counts[singles:])])
        chunks = Chunks(tables[singles:], lengths[singles:], starts, singles, int(counts.max()))
    real = batch.num_tokens
    return Step(
        pool,
        batch.positions[:real].int(),
        batch.write_blocks.int(),
        batch.write_slots.int(),
        decode,
        chunks,
    )


def relative(answer: torch.Tensor, exact: torch.Tensor) -> float:
    return float((answer.double() - exact.double()).norm() / exact.double().norm())


PLANS = {
    "decode": [row(40, 1, [3, 1, 8]), row(299, 1, list(range(20, 39))), row(0, 1, [9])],
    "chunks": [row(0, 35, [4, 2, 7]), row(16, 20, [11, 12, 13]), row(100, 2, list(range(40, 47)))],
    "mixed": [
        row(0, 50, [4, 2, 7, 5]),
        row(40, 1, [3, 1, 8]),
        row(16, 3, [11, 12]),
        row(299, 1, list(range(20, 39))),
    ],
}


@pytest.mark.parametrize("plan", list(PLANS), ids=str)
@pytest.mark.parametrize(
    ("window", "normed", "softcap"), [(None, False, None), (24, True, None), (None, True, 9.0)]
)
def test_a_step_attends_as_torch_does(
    plan: str, window: int | None, normed: bool, softcap: float | None, device: torch.device
) -> None:
    batch = build(StepPlan(number=1, rows=PLANS[plan]), BLOCK, device)
    attention = spec(device, window=window, normed=normed, softcap=softcap)
    pool = torch.randn(50, 2, 2, 2, BLOCK, 64, device=device).half()
    qkv = torch.randn(len(batch.token_ids), 8 * 64, device=device).half()
    mine, theirs = pool.clone(), pool.clone()
    answer = CudaKernels().attend(attention, qkv[: batch.num_tokens].clone(), step_of(batch, mine))
    plain = TorchKernels()
    exact = plain.attend(attention, qkv.clone(), plain.prepare(batch, theirs, [attention]))
    assert relative(answer, exact[: batch.num_tokens]) < 5e-3
    assert relative(mine, theirs) < 1e-3


@pytest.mark.parametrize("plan", list(PLANS), ids=str)
def test_a_step_over_e4m3_attends_as_torch_does_over_what_it_stands_for(
    plan: str, device: torch.device
) -> None:
    """Written and read by the same step; torch's pool is given what the other one holds."""
    batch = build(StepPlan(number=1, rows=PLANS[plan]), BLOCK, device)
    attention = spec(device, window=24, normed=True, softcap=9.0)
    case = Case(lengths=(), counts=(), block_size=BLOCK, fp8=True)
    narrow = moved(poisoned(case, 50, torch.device("cpu")), device)
    stored, scales = quantised(torch.randn(narrow.shape, device=device))
    narrow.copy_(stored)
    scales_of(narrow).copy_(scales)
    wide = (narrow.float() * scales_of(narrow)[..., None]).half()
    qkv = torch.randn(len(batch.token_ids), 8 * 64, device=device).half()
    plain = TorchKernels()
    answer = CudaKernels().attend(attention, qkv[: batch.num_tokens].clone(), step_of(batch, narrow))
    exact = plain.attend(attention, qkv.clone(), plain.prepare(batch, wide, [attention]))
    assert relative(narrow.float() * scales_of(narrow)[..., None], wide) < 2e-2
    assert relative(answer, exact[: batch.num_tokens]) < 5e-2


def attend_fresh(q, out, kv, tables, starts, lengths, max_count, scores, *, fresh):
    """What the Hopper prefill promises, in torch: whole prompts from `fresh`, other rows from the pool."""
    prefill(q, out, kv, tables, starts, lengths, max_count, scores)
    for row, length in enumerate(lengths.tolist()):
        begin, end = starts[row].item(), starts[row + 1].item()
        if end - begin == length:
            out[begin:end] = float("nan")
            keys = fresh[begin:end, q.shape[1] : q.shape[1] + kv.kv_heads].transpose(0, 1).float()
            values = fresh[begin:end, q.shape[1] + kv.kv_heads :].transpose(0, 1).float()
            queries = q[begin:end].transpose(0, 1).float()
            attended = scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=scores.scale, enable_gqa=True
            )
            out[begin:end] = attended.transpose(0, 1).to(out.dtype)


@pytest.mark.parametrize("plan", ["chunks", "mixed"])
def test_whole_prompts_are_given_the_step_s_own_keys(
    plan: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotated and normed like those in the pool, each row at its own place of the step."""
    monkeypatch.setattr(cuda, "is_hopper", lambda kv: True)
    monkeypatch.setattr(cuda, "hopper_prefill", attend_fresh)
    batch = build(StepPlan(number=1, rows=PLANS[plan]), BLOCK, device)
    attention = spec(device, window=None, normed=True, softcap=None)
    pool = torch.randn(50, 2, 2, 2, BLOCK, 64, device=device).half()
    qkv = torch.randn(len(batch.token_ids), 8 * 64, device=device).half()
    plain = TorchKernels()
    answer = CudaKernels().attend(attention, qkv[: batch.num_tokens].clone(), step_of(batch, pool.clone()))
    exact = plain.attend(attention, qkv.clone(), plain.prepare(batch, pool, [attention]))
    assert relative(answer, exact[: batch.num_tokens]) < 5e-3


def test_norms_and_gates_are_the_seam_s(device: torch.device) -> None:
    mine, plain = CudaKernels(), TorchKernels()
    x, residual = torch.randn(2, 5, 256, device=device).half().unbind()
    weight = torch.rand(256, device=device) + 0.5
    assert relative(mine.norm(x, weight, 1e-5), plain.norm(x, weight, 1e-5)) < 2e-3
    added = [kernels.add_norm(x, residual.clone(), weight, 1e-5) for kernels in (mine, plain)]
    assert relative(added[0], added[1]) < 2e-3


@pytest.mark.parametrize("rows", [5, 20])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gated_products_are_the_seam_s(activation: str, rows: int, device: torch.device) -> None:
    """Few rows and more, by a product that can gate and by one that cannot."""
    weight = torch.randn(192, 256, device=device).half() / 16
    x = torch.randn(rows, 256, device=device).half()
    exact = TorchKernels().gated(PlainLinear(weight.float(), None), x.float(), activation)
    for product in (GpuLinear(weight, None), PlainLinear(weight, None)):
        assert relative(CudaKernels().gated(product, x, activation), exact) < 2e-3
