"""The peer of the serving benchmark: transformers `generate`, static batch, in a process of its own.

Reads one JSON line a run on stdin ({"prompts": [[ids]], "new_tokens": n}) and answers with the seconds of the whole
call. Asleep in a read between runs, so that both engines can take turns on the same cores.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    for line in sys.stdin:
        run = json.loads(line)
        answer = {"seconds": generate(model, torch.tensor(run["prompts"]), run["new_tokens"])}
        print(json.dumps(answer), flush=True)


def generate(model: torch.nn.Module, prompts: torch.Tensor, new_tokens: int) -> float:
    """Seconds of one greedy `generate` over the batch; asserts that every token was made."""
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    assert out.shape[1] == prompts.shape[1] + new_tokens
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
