"""Random small checkpoints of every family, and what transformers generates from them greedily, in float32.

A reference whose best two logits ever come closer than GAP is drawn again with another seed: then no rounding
can turn a right answer into a different token.
"""

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

GAP = 1e-4
DISTINCT = 10  # different tokens in each answer
VOCAB = 199
PROMPT_LENGTHS = (37, 5, 61, 18, 90, 1, 44, 73)
NEW_TOKENS = 64
HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}
WINDOW = 24  # shorter than most prompts, no multiple of 16
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")

# The first seed that is known to give a clear reference, where it is not 0: saves the search, decides nothing.
_FIRST_SEED = {
    ("qwen3", "mha"): 1,
    ("gemma", "mha"): 2,
    ("gemma", "mqa"): 5,
    ("gemma2", "mha"): 3,
    ("gemma2", "gqa"): 5,
    ("gemma2", "mqa"): 2,
    ("gemma3_text", "mha"): 2,
}

_EXTRA: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
    },
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def config_of(family: str, heads: str, **changes: Any) -> Any:
    """A transformers config of three small layers."""
    query_heads, kv_heads = HEADS[heads]
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": family.startswith("gemma"),
    }
    return transformers.AutoConfig.for_model(family, **(values | _EXTRA.get(family, {}) | changes))


def make_checkpoint(folder: Path, family: str, heads: str, seed: int = 0, **changes: Any) -> Path:
    """Saves a random model of `family` with `heads` (mha, gqa, mqa) under `folder`, as transformers would."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_of(family, heads, **changes)).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Layers that outweigh the embedding: greedy decoding does not fall into repeating one token.
            sharp = 2.0 if "q_norm" in name or "k_norm" in name else 0.3
            weight.add_(torch.randn_like(weight) * (0.02 if "embed" in name else sharp))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def open_reference(folder: Path) -> Any:
    """The transformers model of a folder, float32, eager attention."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def greedy(model: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """`count` greedy tokens after the prompt, end-of-sequence ignored; and the least gap of the best two logits."""
    ids, tokens, cache, least = torch.tensor([prompt]), [], None, float("inf")
    with torch.inference_mode():
        for _ in range(count):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = out.logits[0, -1].topk(2)
            least = min(least, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            ids = best.indices[None, :1]
    return tokens, least


def prompts(seed: int = 0) -> list[list[int]]:
    """Eight prompts of ragged lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


@functools.cache
def reference(family: str, heads: str) -> tuple[Path, list[list[int]], list[list[int]]]:
    """A checkpoint, its prompts and their greedy continuations of NEW_TOKENS; every gap is at least GAP.

    Made once per process and kept under the temporary directory until it ends.
    """
    root = Path(_root().name)
    first = _FIRST_SEED.get((family, heads), 0)
    for seed in range(first, first + 32):
        folder = make_checkpoint(root / f"{family}-{heads}-{seed}", family, heads, seed)
        model = open_reference(folder)
        asked = prompts(seed)
        answers = [greedy(model, prompt, NEW_TOKENS) for prompt in asked]
        varied = min(len(set(tokens)) for tokens, _ in answers) >= DISTINCT
        if varied and min(gap for _, gap in answers) >= GAP:
            return folder, asked, [tokens for tokens, _ in answers]
    raise AssertionError(f"no seed gives {family} {heads} a clear reference")


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hf-checkpoints-")
