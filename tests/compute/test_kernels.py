"""The compiled kernels compute what the torch ones do, for every element type and odd shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.batch import alike, build
from compute.kernels import choose
from compute.kernels.native_cpu import NativeKernels, attends, native_kernels
from compute.kernels.native_linear import tiled
from compute.kernels.torch_cpu import TorchKernels, attend_group, gather, window_of
from compute.model.linear import PackedLinear, PlainLinear, make_linear, packing_works
from compute.plan import StepPlan, StepRow
from compute.runner import load
from kvmanager.messages import SequenceId
from tests.support import hf
from tests.support.drive import GREEDY, make_runner

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
needs_compiler = pytest.mark.skipif(native_kernels(torch.float32) is None, reason="no C compiler here")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


def native(dtype):
    library = native_kernels(dtype)
    assert library is not None
    return NativeKernels(library)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[ours.dtype], rtol=TOLERANCE[ours.dtype])


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 16), (4, 576), (130, 1000)])
def test_norms(dtype, shape):
    x, residual, weight = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1])
    close(native(dtype).norm(x, weight, 1e-5), TorchKernels().norm(x, weight, 1e-5))
    mine, theirs = residual.clone(), residual.clone()
    close(native(dtype).add_norm(x, mine, weight, 1e-5), TorchKernels().add_norm(x, theirs, weight, 1e-5))
    assert torch.equal(mine, theirs)


@needs_compiler
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_gates(dtype, activation):
    x = (torch.randn(9, 2 * 75) * 8).to(dtype)
    x[0, :5] = torch.tensor([0.0, 200.0, -200.0, 1e-30, -1e4])
    close(native(dtype).gate(x, activation), TorchKernels().gate(x, activation))


@needs_compiler
def test_what_is_not_a_number_stays_so(dtype):
    x = torch.randn(3, 64).to(dtype)
    x[1, 7] = float("nan")
    assert native(dtype).norm(x, torch.ones(64), 1e-5).isnan().any(dim=1).tolist() == [False, True, False]
    assert native(dtype).gate(x, "silu").isnan().any(dim=1).tolist() == [False, True, False]


@needs_compiler
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("heads", hf.HEADS)
def test_decode_attention(family, heads, dtype, tmp_path):
    """One decode step of ragged rows, each layer: the native kernel against the gathering one."""
    hf.config_of(family, heads).save_pretrained(tmp_path)
    model = load(tmp_path, str(dtype).removeprefix("torch."), load_format="dummy")
    runner = make_runner(model, 8, 40)
    runner.pool.normal_()
    lengths, at, rows = (1, 8, 9, 33, 70), 0, []
    for index, length in enumerate(lengths):
        count = -(-length // 8)
        rows.append(decode_row(index, length, range(at, at + count)))
        at += count
    batch = build(StepPlan(0, rows), 8, model.device)
    results = []
    for kernels in (native(dtype), TorchKernels()):
        pool = runner.pool.clone()
        torch.manual_seed(1)
        step = kernels.prepare(batch, pool, model.specs)
        size = (model.config.num_heads + 2 * model.config.num_kv_heads) * model.config.head_dim
        outs = [kernels.attend(spec, torch.randn(8, size).to(dtype), step)[:5] for spec in model.specs]
        results.append((torch.stack(outs), pool))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1])
    assert not torch.equal(results[0][1], runner.pool)


@pytest.mark.parametrize("dim", [4, 8, 16, 24])
def test_chosen_kernels_attend_heads_of_any_size(dim, tmp_path):
    """Heads that do not fill the machine's lanes read and write nothing of their neighbours."""
    hf.config_of("llama", "gqa", head_dim=dim).save_pretrained(tmp_path)
    model = load(tmp_path, "float32", load_format="dummy")
    runner = make_runner(model, 8, 8)
    runner.pool.normal_()
    batch = build(StepPlan(0, [decode_row(0, 9, [0, 1]), decode_row(1, 30, [2, 3, 4, 5])]), 8, model.device)
    spec, results = model.specs[0], []
    qkv = torch.randn(len(batch.token_ids), (spec.num_heads + 2 * spec.num_kv_heads) * dim)
    for kernels in (choose(model.config, torch.float32, model.device), TorchKernels()):
        step = kernels.prepare(batch, runner.pool.clone(), model.specs)
        results.append(kernels.attend(spec, qkv.clone(), step)[:2])
    close(*results)


def test_a_group_beyond_the_native_registers_is_left_to_torch():
    assert not attends(group=65, dim=16)
    assert attends(group=64, dim=16)


def decode_row(index, length, blocks, count=1):
    return StepRow(
        sequence=SequenceId(bytes([index]) * 16),
        epoch=1,
        token_ids=[5] * count,
        start=length - count,
        blocks=list(blocks),
        sample=True,
        history=[5] * length,
        prompt_len=length,
        sampling=GREEDY,
    )


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40, 70])
@pytest.mark.parametrize("bias", [True, False])
def test_tiled_linear(rows, bias):
    weight, x = torch.randn(96, 160).bfloat16(), torch.randn(rows, 160).bfloat16()
    added = torch.randn(96).bfloat16() if bias else None
    layer = tiled(weight, added)
    if layer is None:
        pytest.skip("no AMX here")
    y = layer(x)
    exact = torch.nn.functional.linear(x.float(), weight.float(), None if added is None else added.float())
    torch.testing.assert_close(y.float(), exact, atol=0.05, rtol=0.01)
    assert torch.equal(layer(x[-1:]), y[-1:])


@pytest.mark.parametrize("shape", [(96, 160), (33, 40)])
def test_every_linear_gives_the_same(dtype, shape):
    weight, x = torch.randn(shape).to(dtype), torch.randn(5, shape[1]).to(dtype)
    layers = [make_linear(weight), PlainLinear(weight, None)]
    layers += [PackedLinear(weight, None)] if packing_works(dtype) else []
    for layer in layers:
        torch.testing.assert_close(
            layer(x), layers[-1](x), atol=1e-4 if dtype == torch.float32 else 0.1, rtol=0.01
        )


def test_a_type_without_kernels_of_its_own_runs_on_torch(tmp_path):
    hf.config_of("llama", "gqa").save_pretrained(tmp_path)
    model = load(tmp_path, "float16", load_format="dummy")
    assert isinstance(choose(model.config, torch.float16, model.device), TorchKernels)


def test_scores_beyond_the_memory_bound_are_computed_in_slices(monkeypatch, tmp_path):
    hf.config_of("gemma2", "gqa").save_pretrained(tmp_path)
    model = load(tmp_path, "float32", load_format="dummy")
    pool = torch.randn(10, 3, 2, 2, 8, 16)
    batch = build(StepPlan(0, [decode_row(0, 60, range(8), count=30)]), 8, model.device)
    spec, q = model.specs[1], torch.randn(32, 4, 16)
    outs = []
    for bound in (2**26, 1):
        monkeypatch.setattr("compute.kernels.torch_cpu.SCORE_BYTES", bound)
        outs.append(torch.zeros(32, 64))
        window = window_of(batch.groups[0], spec.window, pool)
        attend_group(spec, q, gather(pool, spec, window), window, outs[-1])
    torch.testing.assert_close(*outs)
    assert outs[0][:30].abs().sum() > 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=12),
    st.sampled_from([8, 16]),
)
def test_a_batch_covers_every_token_of_its_plan_once(shapes, block_size):
    """Positions, slots and groups agree with the rows, in any mix."""
    rows, at = [], 0
    for index, (count, start) in enumerate(shapes):
        blocks = -(-(start + count) // block_size)
        rows.append(decode_row(index, start + count, range(at, at + blocks), count))
        at += blocks
    batch = build(StepPlan(0, rows), block_size, torch.device("cpu"))
    assert batch.num_tokens == sum(count for count, _ in shapes)
    assert len(batch.token_ids) % 4 == 0
    assert sum(group.num_tokens for group in batch.groups) == batch.num_tokens
    for row, first in zip(rows, batch.row_starts, strict=True):
        for offset in range(len(row.token_ids)):
            position = row.start + offset
            assert batch.positions[first + offset] == position
            assert batch.write_blocks[first + offset] == row.blocks[position // block_size]
            assert batch.write_slots[first + offset] == position % block_size
    for group in batch.groups:
        assert group.width == group.counts.max()
        assert (group.width == 1) == all(group.counts == 1)
        assert all(
            alike(group.counts[:1], c, group.lengths[:1], n)
            for c, n in zip(group.counts, group.lengths, strict=True)
        )
