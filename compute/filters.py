"""top-k, then top-p, then min-p, as one number a row: the least weight that may still be drawn.

A weight is exp((logit - row's largest) / temperature), so the likeliest token weighs 1. Tokens that tie with the last
one kept are kept as well: what is kept does not depend on the order of a sort, only on the row.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from compute.request import SamplingParams

# Most nuclei of a trained model end within these; picking them costs a third of sorting 49,152 weights.
SHORTLIST: Final = 256


def least_kept(weights: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """float64 [n]: tokens of row i that weigh less are dropped. `weights` is float64 [n, vocab]."""
    floor = weights.new_tensor([param.min_p for param in params]).clamp(max=1.0)
    vocab = weights.shape[1]
    ranked = [i for i, param in enumerate(params) if 0 < param.top_k < vocab or param.top_p < 1.0]
    if not ranked:
        return floor
    top_k = torch.tensor([params[i].top_k or vocab for i in ranked], device=weights.device).clamp(max=vocab)
    top_p = weights.new_tensor([params[i].top_p for i in ranked])
    part = weights if len(ranked) == len(params) else weights[ranked]
    floor[ranked] = torch.maximum(floor[ranked], _by_rank(part, top_k, top_p))
    return floor


def _by_rank(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """float64 [n]: the least weight in the top k, and in the smallest set of those that holds top_p of their mass."""
    mass = weights.cumsum(dim=1)[:, -1]  # not sum(): the same additions in the same order whatever the batch
    best = weights.topk(min(SHORTLIST, weights.shape[1])).values
    floor, nucleus_found = _cut(best, mass, top_k, top_p)
    settled = (top_k <= best.shape[1]) | ((top_k == weights.shape[1]) & nucleus_found)
    rest = (~settled).nonzero().flatten()
    if len(rest):
        full = _descending(weights[rest])
        floor[rest], _ = _cut(full, mass[rest], top_k[rest], top_p[rest])
    return floor


def _cut(ordered: Tensor, mass: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Floors from each row's largest weights, best first [n, s], and bool [n]: whether a top_p ends within the s.

    ordered  0 ........ nucleus ........ top_k ........ s
             [ holds top_p of the top k ]
    """
    length = ordered.shape[1]
    running = ordered.cumsum(dim=1)
    last = top_k.clamp(max=length)[:, None] - 1
    # For s < top_k < vocab this is not the mass of the top k: such a row is not settled yet.
    whole = torch.where(top_k <= length, running.gather(1, last)[:, 0], mass)
    wanted = top_p * whole
    nucleus = torch.searchsorted(running, wanted[:, None])
    nucleus = torch.where(top_p[:, None] < 1.0, nucleus, last)
    floor = ordered.gather(1, torch.minimum(nucleus, last))[:, 0]
    return floor, (top_p < 1.0) & (nucleus[:, 0] < length)


def _descending(weights: Tensor) -> Tensor:
    """Each row sorted, best first. On the CPU numpy's vectorised sort of plain values is six times torch's."""
    if weights.device.type == "cpu":
        return torch.from_numpy(np.sort(weights.numpy(), axis=1)).flip(1)
    return weights.sort(dim=1, descending=True).values
