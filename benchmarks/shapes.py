"""Random Llama checkpoints of known shapes, the same weights for every engine in a run."""

from pathlib import Path
from typing import Any

LLAMA_135M = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}

LLAMA_7M = {
    "num_hidden_layers": 8,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def checkpoint(folder: Path, seed: int = 0, shape: dict[str, Any] = LLAMA_135M) -> Path:
    """A bf16 Hugging Face folder of this shape; made once, by transformers itself."""
    if (folder / "config.json").exists():
        return folder
    import torch  # noqa: PLC0415 - only the process that makes it pays for the imports
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder
