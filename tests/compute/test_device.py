"""Which device a worker takes, and what it will need there: weights counted as transformers counts them."""

import pytest
import torch
import transformers

from compute import device
from compute.device import parameters, peak_bytes, resolve, uuid_of
from compute.model.families import FAMILIES
from compute.model_config import ModelConfig
from kvmanager.errors import Unavailable
from tests.support import hf
from tests.support.fake_gpu import UUID, FakeGpu

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "torch_dtype": "bfloat16",
}
LIMITS = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "max_model_len": 8192}


@pytest.mark.parametrize("heads", hf.HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_every_family_are_counted_exactly(family, heads, tmp_path):
    theirs = hf.config_of(family, heads)
    theirs.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    assert parameters(ModelConfig.from_folder(tmp_path)) == model.num_parameters()


def test_a_model_of_8b_needs_its_16_gb_of_weights_and_about_two_more():
    config = ModelConfig.from_dict(LLAMA_8B)
    assert parameters(config) == 8_030_261_248
    need = peak_bytes(config, "bfloat16", **LIMITS)
    assert 16_060_522_496 * 1.05 + 2**30 < need < 19.5e9
    assert peak_bytes(config, "float32", **LIMITS) > need + 16e9


@pytest.mark.parametrize("limit", LIMITS)
def test_every_limit_counts(limit):
    config = ModelConfig.from_dict(LLAMA_8B)
    less = LIMITS | {limit: LIMITS[limit] // 2}
    assert peak_bytes(config, "bfloat16", **less) < peak_bytes(config, "bfloat16", **LIMITS)


def test_auto_is_a_gpu_only_where_there_is_one_with_all_that_it_takes(monkeypatch):
    found = {"cuda.bindings", "triton"}
    monkeypatch.setattr(device, "installed", found.__contains__)
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert (resolve("auto"), resolve("cuda"), resolve("cpu")) == ("cuda", "cuda", "cpu")
    found.remove("triton")
    assert resolve("auto") == "cpu"
    with pytest.raises(Unavailable, match="triton is not installed"):
        resolve("cuda")
    found.add("triton")
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    assert resolve("auto") == "cpu"
    with pytest.raises(Unavailable, match="no NVIDIA GPU"):
        resolve("cuda")


def test_packages_are_looked_for_without_being_imported():
    assert device.installed("json.decoder")
    assert not device.installed("no_such_package.part")


def test_a_worker_names_the_first_visible_gpu():
    assert uuid_of("cpu") == "cpu"
    assert uuid_of("cuda", FakeGpu()) == UUID
    blind = FakeGpu()
    blind.devices = list
    with pytest.raises(Unavailable, match="CUDA_VISIBLE_DEVICES"):
        uuid_of("cuda", blind)
