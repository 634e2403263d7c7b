"""The prefix benchmark's own logic: what a batch shares, what a pair says, what the daemon's policy is asked."""

import os
import random
from pathlib import Path

import pytest

from benchmarks import prefix_policy
from benchmarks.prefix import alternate, batch
from benchmarks.prefix_sides import Took, asked, cpu_us
from kvmanager.messages import BlockRef, FinishReason, SequenceId, SequenceRef


@pytest.mark.parametrize(("share", "alike"), [(0.0, 0), (0.5, 5), (0.9, 9)])
def test_a_share_of_the_prompts_begins_alike_and_nothing_else_is_repeated(share: float, alike: int) -> None:
    beginning = [*range(100, 164)]
    prompts = batch(random.Random(1), 10, share, beginning)
    assert {len(prompt) for prompt in prompts} == {64 + 128}
    assert sum(prompt[:64] == beginning for prompt in prompts) == alike
    assert len({tuple(prompt[64:]) for prompt in prompts}) == 10
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 10 - alike + bool(alike)


class Recording:
    """Sides that note what they are asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[list[int]]]] = []

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, side: str, prompts: list[list[int]], new_tokens: int) -> Took:
        self.asked.append((side, prompts))
        return Took(2.0 if side == "with" else 6.0, 40.0)


def test_pairs_have_the_same_prompts_in_changing_order_after_a_warm_up() -> None:
    sides = Recording()
    found = alternate(sides, 0.5, 4, 2, shared=32)
    warm, runs = sides.asked[:2], sides.asked[2:]
    assert [side for side, _ in runs] == ["with", "without", "without", "with"] * 2
    assert all(runs[i][1] == runs[i + 1][1] for i in range(0, 8, 2))
    beginning = warm[0][1][-1][:32]
    assert all(sum(prompt[:32] == beginning for prompt in prompts) == 1 for _, prompts in runs)
    row = found.as_json()
    assert (row["speedup"]["median"], row["speedup"]["ci95"]) == (3.0, [3.0, 3.0])
    assert row["requests_per_second"]["with"]["median"] == 1.0
    assert row["daemon_us_difference"]["median"] == 0.0
    assert len(row["speedup"]["values"]) == 4


def test_a_beginning_that_nobody_has_seen_is_new_in_every_pair() -> None:
    sides = Recording()
    alternate(sides, 1.0, 3, 2, first_seen=True, shared=32)
    beginnings = [prompts[0][:32] for _, prompts in sides.asked[2:]]
    assert len({tuple(one) for one in beginnings}) == 3


def test_the_cpu_time_of_a_process_is_that_of_its_threads() -> None:
    before = cpu_us(os.getpid())
    sum(range(300_000))
    assert 0 < cpu_us(os.getpid()) - before < 60e6


def test_who_is_not_there_answers_nothing(tmp_path: Path) -> None:
    assert asked(tmp_path, "status") == {}


def test_a_request_is_committed_in_chunks_and_then_token_by_token() -> None:
    floats = [BlockRef(number, 1) for number in range(200)]
    ref = SequenceRef(SequenceId(bytes(16)), 1)
    found = prefix_policy.entries(ref, range(2100), 2090, floats)
    assert [entry.kv_len for entry in found] == [2048, *range(2090, 2100)]
    assert [len(entry.token_ids) for entry in found] == [0] + [1] * 10
    assert sum(len(entry.blocks) for entry in found) == -(-2099 // 16)
    assert [entry.finish for entry in found] == [FinishReason.NONE] * 10 + [FinishReason.LENGTH]


def test_both_daemons_take_the_request_and_only_one_evicts() -> None:
    found = prefix_policy.measure(100, 12, requests=3)
    assert {len(figure.values) for figure in found.values()} == {3}
    assert all(value > 0 for name in ("with", "without", "hashes") for value in found[name].values)
    plain = prefix_policy.Daemon(100, 12, no_cache=True)
    for number in range(20):
        plain.request([number * 200 + place for place in range(112)])
    state = plain.link.state
    assert (state.evictions, state.counts().cached, state.prefix.queries) == (0, 0, 0)
    assert state.check_integrity() == []
