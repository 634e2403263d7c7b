"""config.json of each family is read as transformers reads it; what cannot be served is named."""

import json

import pytest
import torch
import transformers

from compute.model.families import FAMILIES
from compute.model.hf_config import ModelConfigError, Rope
from compute.model_config import ModelConfig
from tests.support import hf

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
ROPE_CASES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}


def test_a_plain_llama_is_read_in_full():
    config = ModelConfig.from_dict(LLAMA)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert config.max_model_len == 512
    assert config.eos_ids == {2}
    assert config.dtype == "bfloat16"
    assert config.scale == 0.25
    assert not config.tied
    assert config.windows == (None, None)
    geometry = config.geometry(16, "bfloat16")
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, geometry.block_size) == (
        2,
        2,
        16,
        16,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_what_we_read(family, tmp_path):
    theirs = hf.config_of(family, "gqa")
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.from_folder(tmp_path)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 16)
    assert ours.tied == theirs.tie_word_embeddings
    types = getattr(theirs, "layer_types", None) or ["sliding_attention" if family == "mistral" else ""] * 3
    assert ours.windows == tuple(hf.WINDOW if kind == "sliding_attention" else None for kind in types)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_a_missing_key_is_named(key):
    with pytest.raises(ModelConfigError, match=f"config.json has no {key}"):
        ModelConfig.from_dict({name: value for name, value in LLAMA.items() if name != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 2**40),
        ("hidden_size", "64"),
        ("num_hidden_layers", 1.5),
        ("num_hidden_layers", True),
        ("num_key_value_heads", 8),
        ("num_key_value_heads", 3),
        ("head_dim", 17),
        ("rms_norm_eps", -1),
        ("rms_norm_eps", float("nan")),
        ("max_position_embeddings", 10**12),
        ("eos_token_id", 100),
        ("eos_token_id", "x"),
        ("rope_theta", 0),
        ("tie_word_embeddings", 1),
        ("hidden_act", "relu"),
        ("torch_dtype", "int8"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2}),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", "linear"),
    ],
)
def test_a_value_out_of_bounds_is_named(key, value):
    with pytest.raises(ModelConfigError) as caught:
        ModelConfig.from_dict(LLAMA | {key: value})
    assert key.removeprefix("torch_").split("_")[0] in str(caught.value)


def test_an_unknown_model_type_is_told_with_the_known_ones():
    with pytest.raises(ModelConfigError, match=r"model_type 'gpt2'.*llama.*gemma3_text"):
        ModelConfig.from_dict(LLAMA | {"model_type": "gpt2"})


@pytest.mark.parametrize("text", [None, "[]", "{", "\xff"])
def test_a_folder_without_a_readable_config_is_an_error(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text, "latin1")
    with pytest.raises(ModelConfigError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_generation_config_decides_what_ends_a_sequence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert ModelConfig.from_folder(tmp_path).eos_ids == {7, 9}


def test_gemma3_alternates_windows_and_rotations():
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "sliding_window": 32}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    outer = {"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16", "eos_token_id": [1, 106]}
    config = ModelConfig.from_dict(outer)
    assert config.windows == (32, 32, 32, 32, 32, None, 32)
    assert config.ropes[0] == Rope(theta=10_000.0)
    assert config.ropes[5] == Rope(kind="linear", theta=1_000_000.0, factor=8.0)
    assert (config.vocab_size, config.num_kv_heads, config.dtype) == (262_208, 4, "bfloat16")
    assert config.eos_ids == {1, 106}


def test_qwen2_slides_only_when_told_to():
    qwen = LLAMA | {"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 1}
    assert ModelConfig.from_dict(qwen).windows == (None, None)
    assert ModelConfig.from_dict(qwen | {"use_sliding_window": True}).windows == (None, 32)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("linear", {}),
        ("llama3", {}),
        ("yarn", {}),
        ("yarn", {"attention_factor": 0.7}),
        ("yarn", {"beta_fast": 16, "beta_slow": 2, "truncate": False}),
        ("yarn", {"mscale": 0.8, "mscale_all_dim": 0.5}),
    ],
)
def test_rotations_equal_transformers(name, extra):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from compute.model.rope import RotaryTable

    given = ROPE_CASES[name] | {"rope_theta": 5000.0} | extra
    theirs = transformers.LlamaConfig(**{**LLAMA, "head_dim": 32, "rope_parameters": dict(given)})
    positions = torch.arange(0, 512, 7)
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions[None])
    older = ModelConfig.from_dict(LLAMA | {"rope_theta": 5000.0, "rope_scaling": given})
    newer = ModelConfig.from_dict(LLAMA | {"rope_parameters": given})
    assert older.ropes == newer.ropes
    mine, signed = RotaryTable(newer.ropes[0], 32, torch.device("cpu")).rows(positions, 2000)
    torch.testing.assert_close(mine[:, 0], cos[0], atol=5e-5, rtol=0)
    signed[:, :, :16].neg_()
    torch.testing.assert_close(signed[:, 0], sin[0], atol=5e-5, rtol=0)
