"""Lists of the daemon: complete, in pages of any size, narrowed by pool and state."""

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.errors import Invalid
from tests.kvmanager.daemon_view import NAMES, Pool, ask, one_pool


@pytest.fixture
def view():
    return one_pool()


@pytest.fixture
def two_pools(view):
    view.pools["beta-1"] = Pool("beta-1")
    return view


def all_pages(view, size, **request):
    token, items = "", []
    while True:
        reply = ask(view, "list", page_size=size, page_token=token, **request)
        found = [*reply.blocks, *reply.sequences, *reply.workers, *reply.pools, *reply.tiers]
        assert len(found) <= size
        items += found
        token = reply.next_page_token
        if not token:
            assert reply.total_size == len(items)
            return items


def test_blocks_are_all_but_the_free_ones_or_those_of_one_state(two_pools):
    shown = all_pages(two_pools, 100, kind=pb.RESOURCE_KIND_BLOCK)
    assert sorted(block.state for block in shown) == ["sealed"] * 6 + ["tail"]
    free = all_pages(two_pools, 100, kind=pb.RESOURCE_KIND_BLOCK, state="free")
    assert len(free) == 512 - 7 + 512
    assert {block.pool for block in free} == {"alpha-1", "beta-1"}
    assert not any(block.token_ids for block in shown)


@pytest.mark.parametrize("size", [1, 7, 100, 511, 512, 10_000])
def test_pages_of_any_size_hold_every_block_once(two_pools, size):
    shown = all_pages(two_pools, size, kind=pb.RESOURCE_KIND_BLOCK, state="free")
    keys = [(block.pool, block.id) for block in shown]
    assert keys == sorted(set(keys))


def test_pages_go_on_where_they_were_when_blocks_change_state(view):
    first = ask(view, "list", kind=pb.RESOURCE_KIND_BLOCK, state="sealed", page_size=3)
    ask(view, "flush")
    second = ask(
        view,
        "list",
        kind=pb.RESOURCE_KIND_BLOCK,
        state="sealed",
        page_size=3,
        page_token=first.next_page_token,
    )
    assert not {block.id for block in first.blocks} & {block.id for block in second.blocks}


def test_without_a_page_size_a_page_has_a_hundred(view):
    assert len(ask(view, "list", kind=pb.RESOURCE_KIND_BLOCK, state="free").blocks) == 100
    assert len(ask(view, "list", kind=pb.RESOURCE_KIND_BLOCK, state="free", page_size=2**31).blocks) == 505


def test_sequences_are_listed_with_their_lengths_and_without_their_blocks(view):
    shown = all_pages(view, 2, kind=pb.RESOURCE_KIND_SEQUENCE)
    assert [item.id for item in shown[:3]] == [name.hex() for name in NAMES]
    assert len(shown) == 4  # the finished one is still on record
    first = shown[0]
    assert (first.prompt_len, first.recorded_len, first.kv_len, first.num_blocks) == (40, 41, 40, 3)
    assert (first.worker, first.state, first.priority, first.tenant) == ("w0", "open", 3, "abababab")
    assert not first.blocks
    assert {item.finish for item in shown if item.state == "finished"} == {"length"}


def test_workers_pools_and_tiers_are_listed_and_narrowed_by_pool(two_pools):
    assert len(all_pages(two_pools, 1, kind=pb.RESOURCE_KIND_POOL)) == 2
    tiers = all_pages(two_pools, 1, kind=pb.RESOURCE_KIND_TIER)
    assert [(tier.name, tier.pool, tier.blocks) for tier in tiers] == [
        ("host", "alpha-1", 7),
        ("host", "beta-1", 0),
    ]
    assert tiers[0].used_bytes == 7 * 2 * 2 * 8 * 4 * 16
    assert [w.id for w in all_pages(two_pools, 5, kind=pb.RESOURCE_KIND_WORKER, pool="alpha-1")] == ["w0"]
    assert not all_pages(two_pools, 5, kind=pb.RESOURCE_KIND_WORKER, pool="beta-1")


def test_two_workers_of_one_name_are_two_items(view):
    """A restarted worker and its lost former self share a name until the old one is proven gone."""
    view.workers.append(pb.WorkerInfo(id="w0", pool="alpha-1", session="bb", state=pb.WORKER_STATE_LOST))
    shown = all_pages(view, 1, kind=pb.RESOURCE_KIND_WORKER)
    assert [worker.session for worker in shown] == ["aa", "bb"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"kind": 0}, "kind"),
        ({"kind": pb.RESOURCE_KIND_EVENT}, "kind"),
        ({"kind": 77}, "kind"),
        ({"kind": pb.RESOURCE_KIND_BLOCK, "state": "lost"}, "state"),
        ({"kind": pb.RESOURCE_KIND_POOL, "state": "free"}, "state"),
        ({"kind": pb.RESOURCE_KIND_BLOCK, "page_token": "x"}, "page_token"),
    ],
    ids=str,
)
def test_a_list_request_out_of_bounds_names_the_field(view, request_, says):
    with pytest.raises(Invalid, match=says):
        ask(view, "list", **request_)


def test_a_token_does_not_cross_from_one_list_to_another(two_pools):
    token = ask(two_pools, "list", kind=pb.RESOURCE_KIND_POOL, page_size=1).next_page_token
    for other in (
        {"kind": pb.RESOURCE_KIND_TIER},
        {"kind": pb.RESOURCE_KIND_POOL, "pool": "beta-1"},
    ):
        with pytest.raises(Invalid, match="page_token"):
            ask(two_pools, "list", page_token=token, **other)
