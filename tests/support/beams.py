"""Beam searches through the engine, and what transformers says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from compute.request import BeamParams, Request, StopRules
from kvmanager.messages import FinishReason, SequenceId
from tests.support.engine import Engine

Answer = tuple[list[int], float]  # output tokens, score


@dataclass(frozen=True)
class Ask:
    """A beam search. `ends`: ids that end a beam; what transformers calls eos_token_id."""

    prompt: Sequence[int]
    width: int
    n: int = 1
    length_penalty: float = 1.0
    max_tokens: int = 24
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()


def request_of(engine: Engine, ask: Ask, **changes: Any) -> Request:
    """The Submit of a search. What ends it are stop ids: the engine's own end of text is ignored."""
    first, *others = [engine.request(ask.prompt, ask.max_tokens) for _ in range(ask.n)]
    indexes = tuple(SequenceId(one.sequence) for one in (first, *others))
    rules = StopRules(
        max_tokens=ask.max_tokens, min_tokens=ask.min_tokens, stop_token_ids=ask.ends, ignore_eos=True
    )
    beams = BeamParams(width=ask.width, length_penalty=ask.length_penalty, indexes=indexes)
    return replace(first, n=ask.n, stop=rules, beams=beams, **changes)


def answers(engine: Engine, request: Request) -> list[Answer]:
    """Of a search that has ended, best first."""
    assert request.beams is not None
    return [(engine.outputs[index], engine.scores[index]) for index in request.beams.indexes]


def finishes(engine: Engine, request: Request) -> list[FinishReason]:
    assert request.beams is not None
    return [engine.finished[index] for index in request.beams.indexes]


def search(engine: Engine, *asks: Ask) -> list[list[Answer]]:
    """All submitted at once, run to their end."""
    requests = [request_of(engine, ask) for ask in asks]
    for request in requests:
        engine.scheduler.submit(request)
    for _ in engine.steps():
        pass
    return [answers(engine, request) for request in requests]


def reference(model: Any, ask: Ask) -> list[Answer]:
    """transformers' beam search, early_stopping False."""
    asked = GenerationConfig(
        num_beams=ask.width,
        num_return_sequences=ask.n,
        length_penalty=ask.length_penalty,
        early_stopping=False,
        do_sample=False,
        max_new_tokens=ask.max_tokens,
        min_new_tokens=ask.min_tokens or None,
        eos_token_id=sorted(ask.ends) or None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    former, model.generation_config = model.generation_config, GenerationConfig()
    with torch.inference_mode():
        ids = torch.tensor([list(ask.prompt)])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=asked)
    model.generation_config = former
    rows = out.sequences[:, len(ask.prompt) :].tolist()
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    scores = out.sequences_scores.tolist()
    return [(row[:length], score) for row, length, score in zip(rows, lengths, scores, strict=True)]
