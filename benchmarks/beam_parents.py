"""Records which beams descend from which, in beam searches by the repository's own model: data for `sharing`.

    python -m benchmarks.beam_parents [--searches 16] [--steps 256]

Each search starts from another beginning of a story, sampled with a seed, and goes on for a fixed number of steps: the
end of text is never chosen, as in a trace whose outputs have a given length. A search is one string: a word for each
step with a digit for each beam, the place of its parent among the beams of the step before. The model runs in
transformers; nothing of holdfast is measured here.
"""

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.beams import DATA
from benchmarks.kv_cache import MODEL

WIDTHS = (2, 4, 6)
OPENING = 32  # tokens of a beginning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=16)
    parser.add_argument("--steps", type=int, default=256)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - only whoever records anew needs it

    torch.manual_seed(1)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        openings = beginnings(model, options.searches)
        found = {str(width): parents(model, openings, width, options.steps) for width in WIDTHS}
    about = {"model": MODEL.name, "opening_tokens": OPENING, "versions": report.versions()}
    DATA.write_text(json.dumps(about | {"parents": found}, indent=1) + "\n", "utf8")


def beginnings(model: Any, count: int) -> Tensor:
    """[count, OPENING] token ids, drawn at temperature 1."""
    tokens = torch.full((count, 1), model.config.bos_token_id)
    for _ in range(OPENING - 1):
        logits = without_end(model, model(tokens).logits[:, -1])
        tokens = torch.cat((tokens, torch.multinomial(logits.softmax(-1), 1)), 1)
    return tokens


def without_end(model: Any, logits: Tensor) -> Tensor:
    logits[:, model.generation_config.eos_token_id] = float("-inf")
    return logits


def parents(model: Any, openings: Tensor, width: int, steps: int) -> list[str]:
    """Of each search, a word for every step but the first, whose beams all come from the prompt."""
    searches = len(openings)
    reply = model(openings.repeat_interleave(width, 0), use_cache=True)
    cache = reply.past_key_values
    scores = torch.full((searches, width), float("-inf"))
    scores[:, 0] = 0  # all beams are the same prompt: the first step takes them from one
    firsts = torch.arange(searches)[:, None] * width
    found: list[list[str]] = [[] for _ in range(searches)]
    for step in range(steps + 1):
        logprobs = without_end(model, reply.logits[:, -1]).log_softmax(-1).view(searches, width, -1)
        vocabulary = logprobs.shape[-1]
        scores, places = (scores[:, :, None] + logprobs).flatten(1).topk(width)
        came_from, tokens = places // vocabulary, places % vocabulary
        if step:
            for search, row in zip(found, came_from.tolist(), strict=True):
                search.append("".join(map(str, row)))
        cache.reorder_cache((firsts + came_from).flatten())
        reply = model(tokens.view(-1, 1), past_key_values=cache, use_cache=True)
    return [*map(" ".join, found)]


if __name__ == "__main__":
    main()
