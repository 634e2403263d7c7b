"""Times on this GPU of decode over e4m3 beside bfloat16, and of sampling; one table each.

python -m benchmarks.kernel_small
"""

from dataclasses import replace
from statistics import median

import torch

from benchmarks.kernel_shapes import DEVICE, Paged
from benchmarks.kernel_sweep import DECODE
from benchmarks.kernel_timing import Launch, graph_of, times
from compute.kernels.gpu.decode import Scratch, decode
from compute.kernels.gpu.sample import Draws, SampleScratch, sample
from compute.kernels.gpu.splits import sm_count_of, split_count

VOCAB = 128_256
KINDS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "top-k 50, top-p 0.9": {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
    "top-p 0.9, hot": {"temperature": 4.0, "top_p": 0.9},  # too many for the short list
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
}


def decoding(paged: Paged) -> Launch:
    """All layers in turn, split as serving splits them."""
    shape = paged.shape
    group = shape.heads // shape.kv_heads
    splits = split_count(shape.rows, shape.kv_heads, group, shape.tokens, sm_count_of(DEVICE))
    scratch = Scratch.allocate(shape.rows, splits, paged.layer(0), group) if splits > 1 else None
    out = torch.empty_like(paged.queries)

    def launch(index: int) -> Launch:
        layer = paged.layer(index)
        return lambda: decode(paged.queries, out, layer, paged.tables, paged.lengths, shape.scores, scratch)

    return graph_of([launch(index) for index in range(paged.sets)])


def decode_table() -> None:
    for plain in DECODE:
        for shape in (plain, replace(plain, fp8=True)):
            paged = Paged(shape)
            micros = median(times({"x": decoding(paged)}, 15, paged.sets)["x"])
            print(f"decode {shape}: {micros:.1f} us, {shape.kv_bytes / micros / 1e6:.2f} TB/s", flush=True)
            del paged
            torch.cuda.empty_cache()


def sampling(rows: int, values: dict[str, float], dtype: torch.dtype) -> Launch:
    """16 calls in a graph, over logits spread as a trained model's are."""
    draws = Draws.allocate(rows, DEVICE)
    draws.wanted.fill_(1)
    draws.top_p.fill_(1.0)
    draws.uniform.uniform_()
    for name, value in values.items():
        getattr(draws, name).fill_(value)
    logits = (torch.randn(rows, VOCAB, device=DEVICE) * 3).to(dtype)
    drawn = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    scratch = SampleScratch.allocate(rows, VOCAB, DEVICE)
    return graph_of([lambda: sample(logits, draws, drawn, scratch)] * 16)


def sample_table() -> None:
    for rows in (1, 16, 64, 256):
        for name, values in KINDS.items():
            runs = {str(kind)[6:]: sampling(rows, values, kind) for kind in (torch.bfloat16, torch.float32)}
            found = {kind: median(micros) for kind, micros in times(runs, 15, 16).items()}
            print(f"sample {rows} rows, {name}: {found} us", flush=True)


if __name__ == "__main__":
    sample_table()
    decode_table()
