"""Whatever happens between scheduler and KvState, every request ends once, with the tokens it gives alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from compute.request import Request
from gateway.beams import most_tokens
from kvmanager.errors import ResourceExhausted
from kvmanager.messages import FinishReason, Revoke
from tests.support.scheduling import Pair, expected_output, expected_search, make_group, make_search

PREFIXES = ([], [5] * 4, [5] * 9, [6, 7, 8, 9] * 3)


@dataclass(frozen=True)
class Ask:
    """A request to come."""

    prefix: int
    tail: tuple[int, ...]
    priority: int
    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    n: int = 1

    def requests(self, number: int) -> list[Request]:
        """One, or a group of n with a seed each."""
        return make_group(
            number,
            self.n,
            [*PREFIXES[self.prefix], *self.tail],
            priority=self.priority,
            max_tokens=self.max_tokens,
            min_tokens=min(self.min_tokens, self.max_tokens),
            stop_token_ids=self.stop_ids,
        )


@dataclass(frozen=True)
class Seek:
    """A beam search to come."""

    prefix: int
    tail: tuple[int, ...]
    width: int
    n: int
    penalty: float
    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    priority: int

    def request(self, number: int, pair: Pair) -> Request | None:
        """None if the pool is too small for it, as a gateway would find."""
        prompt = [*PREFIXES[self.prefix], *self.tail]
        limits = pair.limits
        room = (limits.num_blocks - 1) * limits.block_size
        fits = most_tokens(len(prompt), self.width, room, limits.block_size)
        if fits < 1 or self.width > limits.max_running:
            return None
        most = min(self.max_tokens, fits)
        return make_search(
            number,
            self.width,
            prompt,
            min(self.n, self.width),
            self.penalty,
            max_tokens=most,
            min_tokens=min(self.min_tokens, most),
            stop_token_ids=self.stop_ids,
            priority=self.priority,
        )


seeks = st.builds(
    Seek,
    prefix=st.integers(0, len(PREFIXES) - 1),
    tail=st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple),
    width=st.integers(2, 4),
    n=st.integers(1, 4),
    penalty=st.sampled_from((1.0, 0.0, -1.0)),
    max_tokens=st.integers(1, 9),
    min_tokens=st.integers(0, 3),
    stop_ids=st.frozensets(st.integers(2, 60), max_size=12),
    priority=st.integers(-1, 1),
)
asks = st.builds(
    Ask,
    prefix=st.integers(0, len(PREFIXES) - 1),
    tail=st.lists(st.integers(2, 9), min_size=1, max_size=9).map(tuple),
    priority=st.integers(-1, 1),
    max_tokens=st.integers(1, 14),
    min_tokens=st.integers(0, 6),
    stop_ids=st.frozensets(st.integers(2, 60), max_size=2),
    n=st.sampled_from((1, 1, 2, 3, 6)),
)
events = st.one_of(
    asks,
    seeks,
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("late"), asks, st.integers(1, 3)),
    st.tuples(st.just("deliver"), st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("revoke"), st.integers(0, 30)),
    st.tuples(st.just("flush")),
)
shapes = st.tuples(
    st.sampled_from((10, 12, 40)), st.integers(1, 5), st.sampled_from((1, 3, 16)), st.integers(1, 2)
)


class Story:
    """Plays events on a pair and remembers what was asked."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.requests: list[Request] = []
        self.canceled: set[bytes] = set()
        self.searches: list[Request] = []

    def play(self, what: object) -> None:
        pair = self.pair
        match what:
            case Ask():
                self.ask(what, 0)
            case Seek():
                self.seek(what)
            case ("late", Ask() as ask, turns):
                self.ask(ask, turns)
            case ("turn", count):
                for _ in range(count):
                    pair.turn()
            case ("deliver", up, down):
                pair.deliver(up, down)
            case ("flush",):
                pair.state.flush()
            case (verb, index) if self.requests:
                self.about(verb, self.requests[index % len(self.requests)])

    def ask(self, ask: Ask, turns: int) -> None:
        """`turns` lie between the first Submit of a group and the others."""
        first, *others = ask.requests(len(self.requests) + 1)
        self.requests += [first, *others]
        self.pair.submit(first)
        for _ in range(turns):
            self.pair.turn()
            self.pair.deliver()
        self.pair.submit(*others)

    def seek(self, seek: Seek) -> None:
        request = seek.request(1000 * (len(self.searches) + 1), self.pair)
        if request is not None:
            self.searches.append(request)
            self.requests.append(request)
            self.pair.submit(request)

    def about(self, what: str, request: Request) -> None:
        pair = self.pair
        if what == "cancel":
            pair.scheduler.cancel(request.sequence, FinishReason.CANCELLED)
            self.canceled.add(request.sequence)
        elif what == "revoke":
            records = pair.state._parts.sequences.open.values()
            own = (
                {request.sequence}
                if request.beams is None
                else {one.id for one in records if one.group == request.group}
            )
            found = [one for one in records if one.id in own][-1:]
            pair.down.extend((0, Revoke(sequence=one.id, epoch=one.epoch)) for one in found)


def assert_forks_alone_were_refused(pair: Pair) -> None:
    """For want of a record, or what was on its way of them after that."""
    void = set()
    for refusal in pair.refusals:
        if refusal.code == ResourceExhausted.code:
            void.add(refusal.sequence)
        assert refusal.sequence in void, refusal


def check(story: Story) -> None:
    pair = story.pair
    event(f"preempted: {pair.state.preemptions > 0}, waited: {pair.scheduler.progress.steps_waited > 0}")
    event(f"searched: {len(story.searches)}")
    event(f"forked: {any(plan.copies for plan in pair.plans)}, refused: {bool(pair.refusals)}")
    assert_forks_alone_were_refused(pair)
    assert pair.rejected == []
    assert pair.used_blocks() == 0
    assert pair.state.check_integrity() == []
    assert pair.state.live_sequences == 0
    for request in story.searches:
        check_search(story, request)
    for request in (one for one in story.requests if one.beams is None):
        tokens, finish = expected_output(request)
        got, ends = pair.output(request), pair.ends(request)
        if request.sequence in story.canceled and ends == [FinishReason.CANCELLED]:
            assert got == tokens[: len(got)]
        else:
            assert (got, ends) == (tokens, [finish])


def check_search(story: Story, request: Request) -> None:
    """Every index ends once: all with the textbook's answer, or all canceled."""
    assert request.beams is not None
    ends = [event.sequence for event in story.pair.shown if event.finish]
    assert all(ends.count(index) == 1 for index in request.beams.indexes)
    found = story.pair.found(request)
    if request.sequence in story.canceled and found[0][1] is FinishReason.CANCELLED:
        assert [one[:2] for one in found] == [([], FinishReason.CANCELLED)] * request.n
        return
    wanted = expected_search(request)
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    assert [one[2] for one in found] == pytest.approx([one[2] for one in wanted])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shapes, st.lists(events, min_size=10, max_size=40))
def test_every_request_ends_once_with_its_own_tokens(
    shape: tuple[int, int, int, int], script: Sequence[object]
) -> None:
    """No leak, no deadlock, no refused commit; cancels, revokes, waits and delays change no token."""
    blocks, seqs, budget, depth = shape
    story = Story(Pair(num_blocks=blocks, max_num_seqs=seqs, max_tokens=budget, depth=depth))
    for one in script:
        story.play(one)
    story.pair.run()
    check(story)


@pytest.mark.full
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shapes, st.lists(events, min_size=20, max_size=80))
def test_the_same_for_longer(shape: tuple[int, int, int, int], script: Sequence[object]) -> None:
    """The same property over many more and longer stories."""
    blocks, seqs, budget, depth = shape
    story = Story(Pair(num_blocks=blocks, max_num_seqs=seqs, max_tokens=budget, depth=depth))
    for one in script:
        story.play(one)
    story.pair.run()
    check(story)
