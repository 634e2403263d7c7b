"""Weights come from safetensors or from a seed; a folder that does not fit its config is told by the tensor's name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compute.fingerprint import fingerprint
from compute.model_config import ModelConfig
from compute.runner import load, resolve_dtype
from compute.weights import WeightsError
from tests.support import hf
from tests.support.drive import generate, make_runner


@pytest.fixture
def folder(tmp_path):
    return hf.make_checkpoint(tmp_path / "model", "llama", "gqa")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def tokens_of(folder, dtype="float32", **options):
    runner = make_runner(load(folder, dtype, **options), 16, 16)
    return generate(runner, [[5, 6, 7, 8, 9]], 12)


def shard(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for part in range(3):
        mine = names[part::3]
        save_file({name: tensors[name] for name in mine}, folder / f"model-{part}.safetensors")
        weight_map |= dict.fromkeys(mine, f"model-{part}.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_give_the_same_model(folder):
    whole = tokens_of(folder)
    shard(folder)
    assert tokens_of(folder) == whole


@pytest.mark.parametrize("names", [["../escape.safetensors"], ["gone.safetensors"], [7]])
def test_an_index_may_only_name_files_of_the_folder(folder, names):
    shard(folder)
    index = {"weight_map": {str(i): name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="index"):
        load(folder, "float32")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tmp_path, tied):
    folder = hf.make_checkpoint(tmp_path, "llama", "gqa", tie_word_embeddings=tied)
    expected, gap = hf.greedy(hf.open_reference(folder), [5, 6, 7, 8, 9], 12)
    assert gap > hf.GAP
    assert tokens_of(folder) == [expected]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_follows_single(folder, dtype):
    """Logits of the first step agree to the precision of the type."""
    logits = []
    for kind in ("float32", dtype):
        runner = make_runner(load(folder, kind), 16, 16)
        plain = runner.readout.sampler.sample
        runner.readout.sampler.sample = lambda values, rows, plain=plain: (
            logits.append(values.clone()) or plain(values, rows)
        )
        generate(runner, [[5, 6, 7, 8, 9]], 2)
    assert logits[0].std() > 0.01
    torch.testing.assert_close(logits[2], logits[0], atol=float(0.2 * logits[0].std()), rtol=0)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load(folder, "float32")


def test_a_mis_shaped_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has shape \[3\].*\[64\]"):
        load(folder, "float32")


def test_an_unexpected_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.3.input_layernorm.weight": torch.ones(64)}))
    with pytest.raises(WeightsError, match=r"unexpected.*model\.layers\.3"):
        load(folder, "float32")


def test_integers_are_no_weights(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has dtype torch\.int8"):
        load(folder, "float32")


def test_garbage_is_an_error(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04 not tensors")
    with pytest.raises(WeightsError, match="cannot read"):
        load(folder, "float32")


def test_no_weights_at_all_is_an_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        load(folder, "float32")


def test_dummy_weights_are_a_function_of_the_seed(folder):
    (folder / "model.safetensors").unlink()
    once, again, other = (tokens_of(folder, load_format="dummy", seed=seed) for seed in (3, 3, 4))
    assert once == again != other


def test_loading_tells_its_progress(folder):
    seen = []
    load(folder, "float32", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_auto_keeps_single_precision_checkpoints(folder):
    config = ModelConfig.from_folder(folder)
    assert config.dtype == "float32"
    assert resolve_dtype(config, "auto") == "float32"
    assert resolve_dtype(config, "bfloat16") == "bfloat16"


@pytest.mark.parametrize("full_bytes", [2**30, 0])
def test_the_fingerprint_tells_models_apart(folder, full_bytes):
    def mark(load_format="auto", seed=0):
        return fingerprint(folder, load_format, seed, full_bytes=full_bytes)

    first = mark()
    assert len(first) == 32
    assert mark() == first
    assert len({first, mark("dummy", 1), mark("dummy", 2)}) == 3
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1.0))
    changed = mark()
    assert changed != first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.01}))
    assert mark() != changed
