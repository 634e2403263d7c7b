"""The peers of the attention benchmarks, each with the layout it likes best. FA3 comes from a vLLM wheel's extension,
where `HOLDFAST_FA3` names the file; it is not part of this project and nothing else needs it."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernel_shapes import DEVICE, Paged

Launch = Callable[[], Any]
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def fa3() -> Any:
    """The FA3 operators, or None."""
    path = os.environ.get("HOLDFAST_FA3")
    if not path:
        return None
    torch.ops.load_library(path)
    return torch.ops._vllm_fa3_C


def dense_decode(paged: Paged, name: str) -> list[Launch]:
    """torch SDPA over dense keys and values, one launch a set."""
    q = paged.queries.unsqueeze(2)  # [B, H, 1, D]
    return [sdpa(name, q, *paged.dense(i), causal=False) for i in range(paged.sets)]


def dense_prefill(paged: Paged, name: str) -> Launch:
    shape = paged.shape
    q = paged.prompt.view(shape.rows, shape.tokens, shape.heads, shape.dim).transpose(1, 2).contiguous()
    return sdpa(name, q, *paged.dense(0), causal=True)


def sdpa(name: str, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Launch:
    scale = q.shape[-1] ** -0.5

    def launch() -> Tensor:
        with sdpa_kernel(BACKENDS[name]):
            return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)

    return launch


def fa3_decode(ops: Any, paged: Paged, block_size: int) -> list[Launch]:
    shape = paged.shape
    starts = torch.arange(shape.rows + 1, dtype=torch.int32, device=DEVICE)
    return [
        fa3_launch(ops, paged, paged.queries, starts, 1, paged.token_major(i, block_size))
        for i in range(paged.sets)
    ]


def fa3_prefill(ops: Any, paged: Paged, block_size: int) -> Launch:
    return fa3_launch(
        ops, paged, paged.prompt, paged.starts, paged.shape.tokens, paged.token_major(0, block_size)
    )


def fa3_launch(
    ops: Any, paged: Paged, q: Tensor, starts: Tensor, max_count: int, kv: tuple[Tensor, Tensor, Tensor]
) -> Launch:
    """As vLLM calls it: varlen queries, a block table, splits by FA3's own heuristic, planned ahead for decode."""
    shape, (keys, values, tables) = paged.shape, kv
    plan = None
    if max_count == 1:
        plan = ops.get_scheduler_metadata(
            shape.rows, 1, shape.tokens, shape.heads, shape.kv_heads, shape.dim, shape.dim, shape.dtype,
            paged.lengths, starts, None, None, None, None, keys.shape[1], 0, True, -1, -1, False, 0, None, 0,
        )  # fmt: skip
    out = torch.empty_like(q)

    def launch() -> Tensor:
        ops.fwd(
            q, keys, values, None, None, None, out, starts, None, None, None, paged.lengths, max_count, shape.tokens,
            tables, None, None, None, None, None, None, None, None, shape.dim**-0.5, True, -1, -1, 0.0, True, plan, 0,
            None, 0, None, 1, 0, None,
        )  # fmt: skip
        return out

    return launch
