"""The float: how many blocks are asked for in advance, when again, and what is given back."""

from compute.scheduler.floats import RETRY_NS, Float
from kvmanager.messages import BlockRef, Grant


def blocks(count: int) -> list[BlockRef]:
    return [BlockRef(number, 1) for number in range(count)]


def filled(count: int, num_blocks: int = 800) -> Float:
    one = Float(num_blocks, block_size=16)
    one.topped_up(blocks(count))
    return one


def test_the_target_is_two_seconds_of_decode_and_the_next_chunk() -> None:
    """Or one block for each sequence that decodes, where that is more; at most an eighth of the pool."""
    one = filled(0)
    assert one.target(tokens_per_second=80.0, decoding=4, chunk_blocks=3) == 10 + 3
    assert one.target(tokens_per_second=0.0, decoding=4, chunk_blocks=3) == 4 + 3
    assert one.target(tokens_per_second=1e6, decoding=4, chunk_blocks=3) == 100
    assert Float(4, 16).target(1e6, 1, 1) == 1


def test_prefill_leaves_decodes_their_reserve_but_never_waits_for_ever() -> None:
    """At most half of what a float may be: in a small pool prefill still gets something."""
    assert filled(0).reserve(tokens_per_second=80.0, decoding=4) == 10
    assert filled(0).reserve(tokens_per_second=1e6, decoding=4) == 50
    assert Float(8, 16).reserve(1e6, 9) == 0


def test_it_is_refilled_below_half() -> None:
    """One Grant is on its way at a time."""
    assert filled(5).order(10, 0, 0, starving=False) is None
    one = filled(4)
    assert one.order(10, 0, 0, starving=False) == Grant(count=6)
    assert one.order(10, 0, 0, starving=False) is None


def test_a_short_grant_is_repeated_when_blocks_come_free_or_later() -> None:
    """The daemon is not asked again for what it has just not had."""
    one = filled(0)
    one.order(10, 0, 0, starving=False)
    one.granted(blocks(2), 100)
    assert one.order(10, 0, 200, starving=False) is None
    assert one.next_retry_ns() == 100 + RETRY_NS
    one.retry()
    assert one.order(10, 0, 200, starving=False) == Grant(count=8)
    one.granted([], 300)
    assert one.order(10, 0, 300 + RETRY_NS, starving=False) == Grant(count=8)


def test_a_starving_grant_asks_for_what_the_step_lacks_and_is_remembered() -> None:
    """A short refill does not delay it; unanswered, it waits for blocks that come unasked."""
    one = filled(0)
    one.order(10, 0, 0, starving=False)
    one.granted([], 0)
    assert one.order(10, 3, 1, starving=True) == Grant(count=3, starving=True)
    one.granted([], 1)
    assert one.order(10, 3, 2, starving=True) is None
    one.topped_up(blocks(3))
    assert len(one) == 3
    assert one.order(10, 2, 3, starving=True) == Grant(count=2, starving=True)


def test_it_gives_up_everything() -> None:
    one = filled(11)
    assert len(one.all()) == 11
    assert len(one) == 0


def test_what_was_taken_for_a_failed_row_comes_back_first() -> None:
    """Nobody was told about it."""
    one = filled(4)
    taken = one.take(2)
    one.put_back(taken)
    assert one.take(9) == blocks(4)
