"""All layers in one call give what layer by layer gives, to the last bit, for every family that the tiles can run."""

import pytest
import torch

from compute.batch import build
from compute.kernels.native_linear import tiles
from compute.plan import StepPlan
from compute.runner import load
from tests.compute.test_kernels import decode_row
from tests.support import hf
from tests.support.drive import make_runner

pytestmark = pytest.mark.skipif(tiles() is None, reason="no AMX or no C compiler here")


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("family", hf.FAMILIES)
def test_a_stack_equals_its_layers_bitwise(family, rows, tmp_path):
    hf.config_of(family, "gqa").save_pretrained(tmp_path)
    model = load(tmp_path, "bfloat16", load_format="dummy")
    assert model.stack is not None
    runner = make_runner(model, 8, 6 * rows)
    runner.pool.normal_()
    plan = StepPlan(0, [decode_row(i, 3 + 7 * (i % 6), range(6 * i, 6 * i + 6)) for i in range(rows)])
    batch = build(plan, 8, model.device)
    results = []
    for stack in (model.stack, None):
        model.stack, pool = stack, runner.pool.clone()
        with torch.inference_mode():
            results.append(
                (model.forward(batch.token_ids, model.kernels.prepare(batch, pool, model.specs))[:rows], pool)
            )
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][0].isfinite().all()


def test_a_step_with_a_chunk_in_it_goes_layer_by_layer(tmp_path):
    hf.config_of("llama", "gqa").save_pretrained(tmp_path)
    model = load(tmp_path, "bfloat16", load_format="dummy")
    runner = make_runner(model, 8, 12)
    plan = StepPlan(0, [decode_row(0, 9, range(6)), decode_row(1, 20, range(6, 12), count=4)])
    step = model.kernels.prepare(build(plan, 8, model.device), runner.pool, model.specs)
    assert model.stack is not None
    assert not model.stack.takes(step)


def test_float32_has_no_stack(tmp_path):
    hf.config_of("llama", "gqa").save_pretrained(tmp_path)
    assert load(tmp_path, "float32", load_format="dummy").stack is None
