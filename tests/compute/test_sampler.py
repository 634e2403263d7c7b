"""compute.sampler: the kept set and its probabilities, the draw, and what a draw does not depend on."""

import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from compute import sampler
from compute.filters import SHORTLIST, least_kept
from compute.penalties import adjust
from compute.philox import uniform
from compute.plan import StepRow
from compute.request import SamplingParams
from compute.sampler import Sampler

VOCAB = 97
quick = settings(max_examples=60, deadline=None)


def make_row(history=(1, 2, 3), prompt_len=1, banned=(), logprobs=0, **sampling):
    return StepRow(
        sequence=bytes(16),
        epoch=1,
        token_ids=history[-1:],
        start=len(history) - 1,
        blocks=(0,),
        sample=True,
        history=history,
        prompt_len=prompt_len,
        sampling=SamplingParams(**sampling),
        banned=frozenset(banned),
        logprobs=logprobs,
    )


def random_logits(seed, rows=1, vocab=VOCAB, spread=3.0):
    """All values distinct with certainty enough: no ties to argue about."""
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def tokens(logits, rows):
    drawn = Sampler(logits.shape[1]).sample(logits, rows)
    assert [item.error for item in drawn] == [None] * len(rows)
    return [item.token_id for item in drawn]


def kept_probabilities(logits, params):
    """The distribution that a row draws from, float64 [vocab], by the sampler's own filters."""
    weights = ((logits.double() - logits.max()) / params.temperature).exp()
    weights[weights < least_kept(weights[None], [params])[0]] = 0
    return weights / weights.sum()


# ------------------------------------------------------------------------------------ against transformers


def warped(logits, params):
    """The same distribution by transformers' processors, in float64."""
    scores = logits[None].double()
    ids = torch.zeros(1, 1, dtype=torch.int64)
    chain = [reference.TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        chain.append(reference.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(reference.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        chain.append(reference.MinPLogitsWarper(params.min_p))
    for warper in chain:
        scores = warper(ids, scores)
    return scores.softmax(dim=1)[0]


FILTERS = st.builds(
    SamplingParams,
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 3 * SHORTLIST),
    top_p=st.floats(0.01, 1.0),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 0.99)),
)


@quick
@given(params=FILTERS, seed=st.integers(0, 2**31), vocab=st.sampled_from([2, 97, SHORTLIST, 3 * SHORTLIST]))
@example(
    SamplingParams(temperature=5.0, top_k=700, top_p=0.9), 1, 3 * SHORTLIST
)  # both beyond the short list
@example(SamplingParams(temperature=5.0, top_p=0.99), 2, 3 * SHORTLIST)
@example(SamplingParams(temperature=0.05, top_k=700, top_p=0.9), 3, 3 * SHORTLIST)
def test_keeps_what_transformers_keeps_with_the_same_probabilities(params, seed, vocab):
    logits = random_logits(seed, vocab=vocab)[0]
    torch.testing.assert_close(
        kept_probabilities(logits, params), warped(logits, params), rtol=1e-9, atol=1e-12
    )


@quick
@given(
    penalty=st.floats(0.1, 10),
    history=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30),
    seed=st.integers(0, 2**31),
)
def test_repetition_penalty_is_that_of_transformers(penalty, history, seed):
    logits = random_logits(seed)
    expected = reference.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits.clone())
    torch.testing.assert_close(adjust(logits, [make_row(history, repetition_penalty=penalty)]), expected)


def test_short_and_full_sort_agree_whatever_shares_the_batch():
    """One row ends within the short list, one needs the full sort, one has a top_k beyond it."""
    logits = random_logits(5, rows=3, vocab=5000)
    logits[0, 17] += 30
    params = [
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.999, temperature=4.0),
        SamplingParams(top_k=4000),
    ]
    heat = torch.tensor([[param.temperature] for param in params])
    weights = ((logits - logits.amax(1, keepdim=True)).double() / heat).exp()
    together = least_kept(weights, params)
    assert together.tolist() == [least_kept(weights[i : i + 1], params[i : i + 1])[0] for i in range(3)]
    assert (weights >= together[:, None]).sum(1).tolist()[2] == 4000


# ------------------------------------------------------------------------------------------ adjustments

ADJUSTED = st.builds(
    make_row,
    history=st.lists(st.integers(0, 15), min_size=1, max_size=40),
    prompt_len=st.integers(1, 10),
    banned=st.frozensets(st.integers(0, 15), max_size=3),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    frequency_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    presence_penalty=st.sampled_from([0.0, 2.0, -0.4]),
    logit_bias=st.dictionaries(st.integers(0, 15), st.floats(-100, 100), max_size=4),
)


def naive_adjust(logits, row):
    """By the definitions, one token at a time."""
    params, scores = row.sampling, list(logits)
    counts = Counter(row.history[row.prompt_len :])
    for token in range(len(scores)):
        if token in row.history:
            times = 1 / params.repetition_penalty if scores[token] > 0 else params.repetition_penalty
            scores[token] *= times
        scores[token] -= counts[token] * params.frequency_penalty
        scores[token] -= (counts[token] > 0) * params.presence_penalty
        scores[token] += params.logit_bias.get(token, 0.0)
        if token in row.banned:
            scores[token] = -math.inf
    return scores


@quick
@given(rows=st.lists(ADJUSTED, min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_adjustments_are_their_definitions_row_by_row(rows, seed):
    logits = random_logits(seed, rows=len(rows), vocab=16)
    expected = torch.tensor(
        [naive_adjust(values, row) for values, row in zip(logits.tolist(), rows, strict=True)]
    )
    torch.testing.assert_close(adjust(logits, rows), expected, rtol=1e-5, atol=1e-5)


def test_penalties_count_up_to_the_position_drawn_only():
    """A history that has grown since the step was planned is not looked at beyond the step."""
    row = make_row([1, 2, 3], frequency_penalty=1.0, repetition_penalty=2.0)
    longer = replace(row, history=[1, 2, 3, 4, 4, 4])
    logits = random_logits(1)
    assert torch.equal(adjust(logits, [row]), adjust(logits, [longer]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_callers_logits_stay_as_they_were(dtype):
    logits = random_logits(1, rows=4).to(dtype)
    before = logits.clone()
    rows = [make_row(temperature=t, top_p=0.5, banned=b) for t in (0.0, 1.0) for b in ((), (3,))]
    tokens(logits, rows)
    assert torch.equal(logits, before)


def test_banned_ids_are_never_drawn_and_ids_beyond_the_vocabulary_are_no_fault():
    logits = random_logits(3)
    best = int(logits.argmax())
    greedy = tokens(logits, [make_row(temperature=0.0, banned=(best, VOCAB, VOCAB + 9))])
    assert greedy == [int(logits.topk(2).indices[0, 1])]
    rows = [make_row(seed=seed, banned=(best,)) for seed in range(500)]
    assert best not in tokens(logits.expand(500, -1), rows)


def test_a_bias_of_minus_and_plus_100_excludes_and_forces():
    logits = random_logits(3)
    best = int(logits.argmax())
    rows = [make_row(seed=seed, logit_bias={best: -100.0}) for seed in range(300)]
    assert best not in tokens(logits.expand(300, -1), rows)
    rows = [make_row(seed=seed, logit_bias={11: 100.0}) for seed in range(300)]
    assert set(tokens(logits.expand(300, -1), rows)) == {11}


# ----------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_lowest_id_of_the_best(dtype):
    logits = torch.zeros(3, VOCAB, dtype=dtype)
    logits[0, [50, 20, 70]] = 2.0
    logits[2, 96] = 1.0
    assert tokens(logits, [make_row(temperature=0.0)] * 3) == [20, 0, 96]
    assert tokens(logits, [make_row(temperature=0.0, presence_penalty=1.0, history=[5, 20])] * 3)[0] == 50


@quick
@given(seed=st.integers(0, 2**31), top_k=st.integers(0, 200), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1))
def test_filters_do_not_change_greedy(seed, top_k, top_p, min_p):
    logits = random_logits(seed)
    assert tokens(logits, [make_row(temperature=0.0, top_k=top_k, top_p=top_p, min_p=min_p)]) == [
        int(logits.argmax())
    ]


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 1e-6}, {"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}],
    ids=str,
)
def test_the_narrowest_settings_take_the_best(sampling):
    logits = random_logits(9, rows=50)
    rows = [make_row(seed=seed, **sampling) for seed in range(50)]
    assert tokens(logits, rows) == logits.argmax(1).tolist()


def test_top_k_1_is_greedy_among_equals_too():
    logits = torch.zeros(30, VOCAB)
    logits[:, [8, 60]] = 1.0
    assert set(tokens(logits, [make_row(seed=seed, top_k=1) for seed in range(30)])) == {8}


def test_min_p_1_keeps_the_tied_best():
    logits = random_logits(9).repeat(400, 1)
    logits[:, [3, 40]] = 20.0
    assert set(tokens(logits, [make_row(seed=seed, min_p=1.0) for seed in range(400)])) == {3, 40}


def test_an_endless_temperature_draws_evenly_but_no_banned_token():
    logits = random_logits(2, vocab=4).expand(2000, -1)
    rows = [make_row(seed=seed, temperature=math.inf, history=[0], banned=(2,)) for seed in range(2000)]
    counts = Counter(tokens(logits, rows))
    assert set(counts) == {0, 1, 3}
    assert min(counts.values()) > 550


def test_a_top_k_beyond_the_vocabulary_is_off():
    logits = random_logits(4, rows=50)
    wide = [make_row(seed=seed, top_k=10**6) for seed in range(50)]
    assert tokens(logits, wide) == tokens(logits, [make_row(seed=seed) for seed in range(50)])


# ------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling):
    """Chi-square over 20,000 positions of one seed; the chance of a false alarm is 1e-6."""
    draws, logits = 20_000, random_logits(8, vocab=12, spread=1.0)
    row = make_row([0], seed=77, **sampling)
    rows = [replace(row, start=position) for position in range(draws)]
    counts = np.bincount(tokens(logits.expand(draws, -1), rows), minlength=12)
    expected = warped(logits[0], row.sampling).numpy() * draws
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    statistic = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert statistic < 49.0  # 11 degrees of freedom (fewer where filters cut): p < 1e-6
    assert kept.sum() > 2


@quick
@given(
    seed=st.integers(0, 2**64 - 1), position=st.integers(0, 10**6), case=st.integers(0, 2**31), params=FILTERS
)
def test_a_draw_is_the_inverse_of_the_cumulative_probabilities_in_id_order(seed, position, case, params):
    params = replace(params, seed=seed)
    logits = random_logits(case)
    row = replace(make_row([0]), start=position, sampling=params)
    number, below = uniform([seed], [position + 1])[0], 0.0
    for expected, probability in enumerate(kept_probabilities(logits[0], params).tolist()):  # noqa: B007
        below += probability
        if below > number:
            break
    assert tokens(logits, [row]) == [expected] or abs(below - number) < 1e-9


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {},
    {"temperature": 0.7, "top_p": 0.9},
    {"top_k": 40, "presence_penalty": 0.5},
    {"top_p": 0.999, "temperature": 3.0},
    {"min_p": 0.02, "logit_bias": {7: 3.0}},
    {"top_k": 1500, "top_p": 0.95},
]


@pytest.mark.parametrize("vocab", [VOCAB, 1013, 6007])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_depend_on_what_shares_the_batch(vocab, dtype):
    """Alone, in a batch, in a shuffled batch, in a part of it, and on one thread or two."""
    logits = random_logits(6, rows=48, vocab=vocab).to(dtype)
    rows = [make_row(list(range(9 + i)), 4, seed=i * 31, logprobs=i % 3, **MIXED[i % 8]) for i in range(48)]
    together = tokens(logits, rows)
    assert len(set(together)) > 20
    assert [tokens(logits[i : i + 1], rows[i : i + 1])[0] for i in range(48)] == together
    order = random.Random(3).sample(range(48), 48)
    shuffled = tokens(logits[order], [rows[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(48)] == together
    assert tokens(logits[5:19], rows[5:19]) == together[5:19]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert tokens(logits, rows) == together
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("vocab", [VOCAB, 6007])
def test_weights_are_bitwise_the_same_in_any_batch(vocab):
    """What the test above rests on: vector and remainder lanes of exp agree, and additions keep their order."""
    logits = random_logits(12, rows=16, vocab=vocab).double()
    together = logits.exp().cumsum(1)
    for i in range(16):
        assert torch.equal(logits[i : i + 1].clone().exp().cumsum(1)[0], together[i])


def test_another_sampler_draws_the_same_again():
    """An adopter has the row and nothing else."""
    logits = random_logits(6, rows=8)
    rows = [make_row(list(range(40)), 4, seed=i, **sampling) for i, sampling in enumerate(MIXED)]
    first = Sampler(VOCAB)
    before = first.sample(logits, rows)
    first.sample(random_logits(7, rows=8), [make_row([5, 5, 5], 1, seed=1)] * 8)
    copies = [replace(row, history=tuple(row.history), sequence=bytes(15) + b"x", epoch=9) for row in rows]
    assert first.sample(logits, rows) == before == Sampler(VOCAB).sample(logits, copies)


@pytest.mark.parametrize(("number", "expected"), [(0.0, 3), (1 - 2.0**-53, 5)])
def test_the_ends_of_the_interval_draw_kept_tokens(number, expected, monkeypatch):
    """0 and the largest number below 1, with nothing to draw before id 3 and after id 5."""
    monkeypatch.setattr(sampler, "uniform", lambda seeds, positions: np.full(len(seeds), number))
    logits = torch.full((3, VOCAB), -math.inf)
    logits[:, 3:6] = random_logits(1, rows=3, vocab=3, spread=0.3)
    rows = [make_row(), make_row(top_p=0.99), make_row(history=[4], presence_penalty=0.1, temperature=2.0)]
    assert tokens(logits, rows) == [expected] * 3


@pytest.mark.parametrize("along", ["position", "seed"])
def test_other_positions_and_other_seeds_draw_others(along):
    logits = torch.zeros(200, 5000)
    rows = [
        replace(make_row([0], seed=5), start=i) if along == "position" else make_row([0], seed=i)
        for i in range(200)
    ]
    assert len(set(tokens(logits, rows))) > 180


def test_a_chunk_of_prompt_draws_at_the_position_after_it():
    """As its last token alone would: chunking does not change the draw."""
    logits = torch.zeros(1, 5000)
    alone = make_row(list(range(20)), 20, seed=3)
    chunk = replace(alone, token_ids=list(range(12, 20)), start=12)
    assert tokens(logits, [alone]) == tokens(logits, [chunk])


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", MIXED, ids=str)
def test_a_row_that_is_not_finite_fails_alone(bad, sampling):
    logits = random_logits(6, rows=3)
    rows = [make_row(seed=i, logprobs=2, **sampling) for i in range(3)]
    good = Sampler(VOCAB).sample(logits, rows)
    logits[1, 13] = bad
    drawn = Sampler(VOCAB).sample(logits, rows)
    assert drawn[0] == good[0]
    assert drawn[2] == good[2]
    assert (drawn[1].token_id, drawn[1].logprob) == (-1, None)
    assert drawn[1].error == "the model's logits are not finite"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_ban_does_not_hide_a_broken_row(temperature):
    logits = random_logits(6)
    logits[0, 13] = math.nan
    row = make_row(temperature=temperature, banned=(13,))
    assert Sampler(VOCAB).sample(logits, [row])[0].error == "the model's logits are not finite"


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_p": 0.5, "top_k": 9}], ids=str)
def test_a_row_with_nothing_to_draw_fails_alone(sampling):
    logits = random_logits(6, rows=3)
    rows = [make_row(**sampling), make_row(banned=range(VOCAB), **sampling), make_row(**sampling)]
    logits[2] = -math.inf
    errors = [item.error for item in Sampler(VOCAB).sample(logits, rows)]
    assert errors[0] is None
    assert errors[1] == errors[2] == "no token can be drawn: every one is banned or has probability 0"


def test_tokens_the_model_excludes_are_not_drawn():
    logits = torch.full((300, VOCAB), -math.inf)
    logits[:, [4, 9]] = 1.0
    assert set(tokens(logits, [make_row(seed=seed) for seed in range(300)])) == {4, 9}


def test_logprobs_are_of_the_raw_logits_and_only_where_asked():
    logits = random_logits(6, rows=2)
    best = int(logits[0].argmax())
    rows = [make_row(logprobs=3, temperature=0.3, logit_bias={11: 100.0}, banned=(best,)), make_row()]
    record, none = (item.logprob for item in Sampler(VOCAB).sample(logits, rows))
    assert none is None
    assert record.token_id == 11
    assert record.logprob == pytest.approx(float(logits[0].log_softmax(0)[11]), abs=1e-5)
    assert record.top[0][0] == best
    assert len(record.top) == 3


def test_no_rows_draw_nothing():
    assert Sampler(VOCAB).sample(torch.empty(0, VOCAB), []) == []
