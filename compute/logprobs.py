"""Log-probabilities under the model's own distribution: raw logits, before penalties, temperature and filters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compute.plan import Logprob


def logprobs(logits: Tensor, token_ids: Sequence[int], top: Sequence[int]) -> list[Logprob]:
    """One record per row of `logits` [n, vocab]: of token_ids[i], with the top[i] (>= 0) most likely beside it.

    The rank counts the tokens that are strictly more likely, plus one. Ties in `top` stand in the order of ids.
    """
    if not token_ids:
        return []
    values = logits.float()
    norm = values.logsumexp(dim=1, keepdim=True)
    chosen = values.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (values > chosen).sum(dim=1).add_(1).tolist()
    best = _best(values, norm, min(max(top), values.shape[1]))
    own = (chosen - norm).flatten().tolist()
    return [
        Logprob(token_id=token, logprob=logprob, rank=rank, top=tuple(row[:k]))
        for token, logprob, rank, row, k in zip(token_ids, own, ranks, best, top, strict=True)
    ]


def most_likely(logits: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """(id, log-probability) of the k most likely of each row of `logits` [n, vocab], best first, ties by id."""
    values = logits.float()
    return _best(values, values.logsumexp(dim=1, keepdim=True), min(k, values.shape[1]))


def prompt_logprobs(logits: Tensor, targets: Sequence[int], k: int) -> list[Logprob]:
    """Of each prompt token but the first: logits [t, vocab] of the positions before, targets the t tokens that came."""
    return logprobs(logits, targets, [k] * len(targets))


def _best(values: Tensor, norm: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """(id, log-probability) of the k most likely of each row, best first, ties by id."""
    found = values.topk(k, dim=1)
    pairs = zip(found.indices.tolist(), (found.values - norm).tolist(), strict=True)
    return [sorted(zip(*row, strict=True), key=lambda pair: (-pair[1], pair[0])) for row in pairs]
