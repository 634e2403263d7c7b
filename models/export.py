"""The files beside the weights: configuration, tokenizer and chat template."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from models.corpus import BOS, END, EOS, PAD, SPECIALS
from models.llama import Shape

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": BOS,
        "eos_token_id": [EOS, END],
        "pad_token_id": PAD,
        **asdict(shape),
    }


def _generation() -> dict[str, object]:
    return {
        "bos_token_id": BOS,
        "eos_token_id": [EOS, END],
        "pad_token_id": PAD,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_length": 4096,
    }


def _marks() -> dict[str, str]:
    return {
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "pad_token": SPECIALS[PAD],
    }


def _tokenizer_config(shape: Shape) -> dict[str, object]:
    return {
        **_marks(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "additional_special_tokens": SPECIALS[3:],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write(folder: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write everything that a loader needs beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": _config(shape),
        "generation_config.json": _generation(),
        "tokenizer_config.json": _tokenizer_config(shape),
        "special_tokens_map.json": {**_marks(), "additional_special_tokens": SPECIALS[3:]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
