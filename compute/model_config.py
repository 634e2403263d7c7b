"""A model's architecture, read from a Hugging Face folder's config.json and generation_config.json.

Owns: which models can be served, with which bounds; the KV geometry that follows. Reads no weights.
Everything in the folder is someone else's input: a value that is missing, unknown or out of bounds is a
ModelConfigError that names the key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compute.model.families import FAMILIES, Family
from compute.model.hf_config import (
    ModelConfigError,
    Reader,
    Rope,
    mapping,
    read_json,
    require,
    ropes_of,
    windows_of,
)
from kvmanager.layout import Geometry

ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
DTYPES: Final = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All that decides the decoder's shapes and arithmetic. `windows` and `ropes` have one entry a layer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int  # max_position_embeddings
    norm_eps: float
    activation: str  # silu, gelu, gelu_tanh
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    scale: float  # of q·k
    attention_softcap: float | None
    final_softcap: float | None
    windows: tuple[int | None, ...]  # a query sees the last `window` positions, its own included
    ropes: tuple[Rope, ...]
    eos_ids: frozenset[int]
    dtype: str | None  # as stored, if the config says so

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ModelConfig":
        """The architecture of the model in `folder`. ModelConfigError names what is wrong."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelConfigError(f"model folder {folder} does not exist")
        config = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        return cls.from_dict(config, read_json(generation) if generation.exists() else {})

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "ModelConfig":
        return _build(config, generation or {})

    def geometry(self, block_size: int, kv_dtype: str) -> Geometry:
        """What the pool's blocks hold for this model, their keys and values in `kv_dtype`."""
        return Geometry(
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_size=block_size,
            dtype=kv_dtype,
        )


def _build(outer: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    model_type = outer.get("model_type")
    config = dict(outer)
    if model_type == "gemma3":
        shared = {key: outer[key] for key in ("dtype", "torch_dtype", "eos_token_id") if key in outer}
        config = shared | dict(mapping(outer, "text_config"))
        model_type = "gemma3_text"
    if model_type not in FAMILIES:
        raise ModelConfigError(
            f"model_type {model_type!r} is not supported; known: {', '.join(FAMILIES)}, gemma3"
        )
    family = FAMILIES[model_type]
    read = Reader({**family.defaults, **config})
    layers = read.integer("num_hidden_layers", 1, 1024)
    heads = read.integer("num_attention_heads", 1, 1024)
    hidden = read.integer("hidden_size", 1, 2**17)
    kv_heads = read.integer("num_key_value_heads", 1, heads, default=heads)
    head_dim = read.integer("head_dim", 2, 1024, default=max(hidden // heads, 1))
    require(
        heads % kv_heads == 0, f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    )
    require(head_dim % 2 == 0, f"head_dim {head_dim} is odd")
    window_of = windows_of(family, read, layers)
    vocab = read.integer("vocab_size", 1, 2**22)
    attention_bias = read.boolean("attention_bias", default=False)
    max_len = read.integer("max_position_embeddings", 1, 2**24)
    return ModelConfig(
        model_type=model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size", 1, 2**20),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_model_len=max_len,
        norm_eps=read.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        activation=_activation(read),
        tied=read.boolean("tie_word_embeddings", default=False),
        qkv_bias=family.qkv_bias or attention_bias,
        output_bias=attention_bias and not family.qkv_bias,
        mlp_bias=read.boolean("mlp_bias", default=False),
        scale=_scale(family, read, head_dim),
        attention_softcap=_softcap(family, read, "attn_logit_softcapping"),
        final_softcap=_softcap(family, read, "final_logit_softcapping"),
        windows=window_of,
        ropes=ropes_of(family, read, window_of, max_len),
        eos_ids=_eos(config, generation, vocab),
        dtype=_dtype(read),
    )


def _scale(family: Family, read: "Reader", head_dim: int) -> float:
    if not family.query_scalar:
        return 1.0 / math.sqrt(head_dim)
    return 1.0 / math.sqrt(read.number("query_pre_attn_scalar", 1e-3, 2**20))


def _softcap(family: Family, read: "Reader", key: str) -> float | None:
    if not family.softcaps or read.values.get(key) is None:
        return None
    return read.number(key, 1e-3, 1e6)


def _activation(read: "Reader") -> str:
    name = read.values.get("hidden_activation") or read.values.get("hidden_act") or "silu"
    if name not in ACTIVATIONS:
        raise ModelConfigError(f"hidden_act {name!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _dtype(read: "Reader") -> str | None:
    name = read.values.get("dtype") or read.values.get("torch_dtype")
    if name is not None and name not in DTYPES:
        raise ModelConfigError(f"dtype {name!r} is not supported; known: {', '.join(DTYPES)}")
    return name


def _eos(config: Mapping[str, Any], generation: Mapping[str, Any], vocab: int) -> frozenset[int]:
    """End-of-sequence ids: generation_config.json's where it has them, else config.json's, as transformers does."""
    found = generation.get("eos_token_id")
    found = config.get("eos_token_id") if found is None else found
    ids = found if isinstance(found, list) else [] if found is None else [found]
    good = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab for item in ids)
    require(good and len(ids) <= 1024, f"eos_token_id {found!r} must hold ids below vocab_size {vocab}")
    return frozenset(ids)
