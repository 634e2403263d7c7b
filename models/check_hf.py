"""Check that Hugging Face transformers loads a model folder and gives the same logits."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.llama import load

_CHAT = [{"role": "user", "content": "Tell me a story about a fox."}]


def main() -> None:
    """Compare both implementations on a long and a short text, and print the template."""
    folder = Path(sys.argv[1])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = load(folder)
    generator = torch.Generator().manual_seed(0)
    random_ids = torch.randint(7, ours.shape.vocab_size, (1, 3000), generator=generator)
    text = tokenizer("Once upon a time there was a fox.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for ids in (text, random_ids):
            worst = (theirs(ids).logits - ours(ids)).abs().max().item()
            print(f"{ids.shape[1]} tokens: largest difference of the logits {worst:.2e}")
            if worst > 1e-3:
                raise SystemExit("the logits differ")
    print(repr(tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True)))
    print(text[0].tolist(), repr(tokenizer.decode(text[0])))


if __name__ == "__main__":
    main()
