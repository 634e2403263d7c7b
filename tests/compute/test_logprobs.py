"""compute.logprobs against log_softmax and a plain sort."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.logprobs import logprobs

quick = settings(max_examples=50, deadline=None)


def random_logits(seed, rows, vocab=50):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4


@quick
@given(
    seed=st.integers(0, 2**31),
    asked=st.lists(st.tuples(st.integers(0, 49), st.integers(0, 20)), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_is_log_softmax_with_the_rank_and_the_best(seed, asked, dtype):
    logits = random_logits(seed, len(asked)).to(dtype)
    token_ids, top = zip(*asked, strict=True)
    expected = logits.double().log_softmax(dim=1)
    for row, record, token, k in zip(expected, logprobs(logits, token_ids, top), token_ids, top, strict=True):
        assert record.token_id == token
        assert record.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert record.rank == 1 + int((row > row[token]).sum())
        assert [value for _, value in record.top] == pytest.approx(row.topk(k).values.tolist(), abs=1e-4)
        assert all(float(row[i]) == pytest.approx(value, abs=1e-4) for i, value in record.top)
        assert len({i for i, _ in record.top}) == k


def test_the_best_token_has_rank_1_and_leads_the_top():
    logits = random_logits(1, 20)
    best = logits.argmax(1).tolist()
    for record in logprobs(logits, best, [5] * 20):
        assert record.rank == 1
        assert record.top[0] == (record.token_id, record.logprob)
        assert list(record.top) == sorted(record.top, key=lambda pair: -pair[1])


def test_equals_stand_in_the_order_of_ids_and_share_a_rank():
    logits = torch.zeros(1, 6)
    logits[0, 4] = 2.0
    (record,) = logprobs(logits, [5], [6])
    assert [i for i, _ in record.top] == [4, 0, 1, 2, 3, 5]
    assert record.rank == 2


def test_more_than_the_vocabulary_gives_the_vocabulary():
    (record,) = logprobs(random_logits(3, 1, vocab=4), [0], [20])
    assert len(record.top) == 4
    assert sum(math.exp(value) for _, value in record.top) == pytest.approx(1.0, abs=1e-5)


def test_an_excluded_token_has_minus_infinity():
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    (record,) = logprobs(logits, [1], [0])
    assert (record.logprob, record.rank, record.top) == (-math.inf, 3, ())


def test_zero_of_the_best_is_the_chosen_token_alone():
    (record,) = logprobs(random_logits(3, 1), [7], [0])
    assert record.top == ()
