"""Sample from a trained folder: ``python -m models.sample models/stories-6m``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.corpus import BOS, END, EOS
from models.llama import Llama, load

PROMPTS = (
    "",
    "Once upon a time there was a",
    "Once upon a time",
    "Tell me a story about a fox and a lantern.\n\n",
    "Tell me a story about a dragon and a cake.\n\n",
    "<|user|>Tell me a story about a brave mouse.<|end|><|assistant|>",
    "<|user|>Write a story about an old woman named Tess and a kite.<|end|><|assistant|>",
    "<|user|>Tell me a story about honesty.<|end|><|assistant|>",
    "<|user|>Hello!<|end|><|assistant|>",
    "<|user|>What is the capital of France?<|end|><|assistant|>",
    "<|user|>Tell me a long story about a cat.<|end|><|assistant|>",
    "The Lost Key\n\n",
)


@torch.no_grad()
def generate(model: Llama, ids: list[int], count: int, temperature: float) -> list[int]:
    """Continue the tokens until an end token; temperature 0 takes the likeliest token."""
    device = next(model.parameters()).device
    start = len(ids)
    for _ in range(count):
        window = torch.tensor([ids[-model.shape.max_position_embeddings :]], device=device)
        logits = model(window)[0, -1].float()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1))
        if token in (EOS, END):
            break
        ids = [*ids, token]
    return ids[start:]


def samples(model: Llama, tokenizer: Tokenizer, count: int, temperature: float) -> str:
    """One continuation of each prompt, as text."""
    out = []
    for prompt in PROMPTS:
        ids = [BOS, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        story = tokenizer.decode(generate(model, ids, count, temperature))
        out.append(f"--- temperature {temperature}: {prompt!r}\n{story}\n")
    return "\n".join(out)


def main() -> None:
    """Print samples of a model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    model = load(options.folder).to("cuda" if torch.cuda.is_available() else "cpu")
    sys.stdout.write(samples(model, tokenizer, options.tokens, options.temperature))


if __name__ == "__main__":
    main()
