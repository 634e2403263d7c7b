"""The daemon's answers to the command line, over the state of real pools: status, descriptions, verdicts."""

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.admin import HANDLERS, MAX_FINDINGS, reported
from kvmanager.errors import Conflict, Invalid, NotFound
from kvmanager.integrity import Finding
from kvmanager.layout import MetaLayout
from tests.kvmanager.daemon_view import NAMES, PROMPT, Pool, View, ask, one_pool


@pytest.fixture
def view():
    return one_pool()


@pytest.fixture
def two_pools(view):
    view.pools["beta-1"] = Pool("beta-1")
    return view


def test_every_handler_answers_with_the_reply_of_its_name():
    for case in HANDLERS:
        assert case in pb.DaemonRequest.DESCRIPTOR.fields_by_name
        assert case in pb.DaemonReply.DESCRIPTOR.fields_by_name


# ---------------------------------------------------------------------------------------------- status


def test_status_tells_what_the_daemon_is_and_holds(view):
    status = ask(view, "status")
    assert (status.boot_epoch, status.run_dir, status.memory_budget_bytes) == (3, "/run/holdfast", 2**30)
    assert status.pid > 0
    assert status.uptime_seconds >= 0
    assert status.version
    assert [worker.id for worker in status.workers] == ["w0"]
    (pool,) = status.pools
    counts = pool.blocks
    assert counts.free + counts.granted + counts.tail + counts.sealed + counts.quarantined == pool.num_blocks
    assert (counts.tail, counts.sealed, counts.cached) == (1, 2 + 4, 4)
    assert (pool.sequences, pool.tokens_held, pool.exporter) == (3, len(PROMPT), "memfd")
    assert pool.fingerprint == bytes(range(32)).hex()
    assert pool.geometry == pb.Geometry(
        num_layers=2, num_kv_heads=1, head_dim=8, block_size=16, dtype="float32", layout_version=1
    )
    assert pool.pool_bytes == view.pools["alpha-1"].pool_bytes


def health(view):
    status = ask(view, "status")
    return status.health, status.health_reason


def test_a_daemon_with_a_worker_is_serving(view):
    assert health(view) == ("SERVING", "")


def test_a_daemon_without_workers_is_serving_and_says_so(view):
    view.workers = [pb.WorkerInfo(id="w0", state=pb.WORKER_STATE_LOST)]
    assert health(view) == ("SERVING", "no worker attached")


def test_a_starting_daemon_is_not_serving(view):
    view.ready = False
    assert health(view) == ("NOT_SERVING", "starting")


def test_a_finding_ends_health_until_a_clean_check(view):
    view.findings["alpha-1"] = 2
    word, reason = health(view)
    assert word == "NOT_SERVING"
    assert "alpha-1: 2" in reason
    assert not ask(view, "fsck").findings
    assert health(view)[0] == "SERVING"


# ---------------------------------------------------------------------------------------------- describe


def describe(view, kind, id_, pool=""):
    reply = ask(view, "describe", kind=kind, id=id_, pool=pool)
    return getattr(reply, reply.WhichOneof("item"))


def test_a_sequence_is_described_with_its_blocks_and_a_block_with_its_tokens(view):
    sequence = describe(view, pb.RESOURCE_KIND_SEQUENCE, NAMES[0].hex()[:5])
    assert sequence.id == NAMES[0].hex()
    assert len(sequence.blocks) == 3
    block = describe(view, pb.RESOURCE_KIND_BLOCK, str(sequence.blocks[1]))
    assert list(block.token_ids) == PROMPT[16:32]
    assert (block.state, block.refcount, list(block.sequences)) == ("sealed", 1, [sequence.id])
    tail = describe(view, pb.RESOURCE_KIND_BLOCK, str(sequence.blocks[2]))
    assert (tail.state, tail.holder, tail.hash) == ("tail", "w0", "")


def test_workers_and_pools_are_described_by_name(view):
    assert describe(view, pb.RESOURCE_KIND_WORKER, "w0").session == "aa"
    assert describe(view, pb.RESOURCE_KIND_POOL, "alpha-1").num_blocks == 512


def test_a_prefix_of_several_sequences_is_a_conflict_that_counts_them(two_pools):
    two_pools.pools["beta-1"].open(b"\x01" * 15 + b"\x00")
    two_pools.pools["alpha-1"].open(b"\x01" * 15 + b"\x02")
    with pytest.raises(Conflict, match="3 sequences begin with 0101"):
        describe(two_pools, pb.RESOURCE_KIND_SEQUENCE, "0101")


@pytest.mark.parametrize(
    ("kind", "id_", "error"),
    [
        (pb.RESOURCE_KIND_BLOCK, "512", NotFound),
        (pb.RESOURCE_KIND_BLOCK, "9" * 19, NotFound),
        (pb.RESOURCE_KIND_BLOCK, "9" * 100, Invalid),
        (pb.RESOURCE_KIND_BLOCK, "-1", Invalid),
        (pb.RESOURCE_KIND_BLOCK, "٣", Invalid),
        (pb.RESOURCE_KIND_SEQUENCE, "ff", NotFound),
        (pb.RESOURCE_KIND_SEQUENCE, "xyz", Invalid),
        (pb.RESOURCE_KIND_WORKER, "w1", NotFound),
        (pb.RESOURCE_KIND_POOL, "gamma", NotFound),
        (pb.RESOURCE_KIND_TIER, "host", Invalid),
        (pb.RESOURCE_KIND_BLOCK, "", Invalid),
        (pb.RESOURCE_KIND_WORKER, "w" * 129, Invalid),
    ],
)
def test_what_cannot_be_described(view, kind, id_, error):
    with pytest.raises(error):
        describe(view, kind, id_)


def test_a_block_of_several_pools_needs_the_pool_s_name(two_pools):
    with pytest.raises(Invalid, match="alpha-1, beta-1"):
        describe(two_pools, pb.RESOURCE_KIND_BLOCK, "0")
    assert describe(two_pools, pb.RESOURCE_KIND_BLOCK, "0", "beta-1").pool == "beta-1"


def test_without_pools_nothing_is_found_and_nothing_is_wrong():
    empty = View()
    assert ask(empty, "list", kind=pb.RESOURCE_KIND_BLOCK).total_size == 0
    assert ask(empty, "fsck") == pb.FsckReply()
    assert ask(empty, "flush").evicted == 0
    with pytest.raises(NotFound, match="when a worker first attaches"):
        describe(empty, pb.RESOURCE_KIND_BLOCK, "0")


# ---------------------------------------------------------------------------------------------- fsck, flush, evict


def test_fsck_counts_what_it_looked_at(two_pools):
    reply = ask(two_pools, "fsck")
    assert (reply.pools, reply.blocks, reply.sequences, list(reply.findings)) == (2, 1024, 4, [])
    assert ask(two_pools, "fsck", pool="beta-1").blocks == 512


def test_fsck_reports_a_spoilt_record_and_ends_health(two_pools):
    pool = two_pools.pools["alpha-1"]
    block = describe(two_pools, pb.RESOURCE_KIND_SEQUENCE, NAMES[0].hex()).blocks[0]
    MetaLayout(pool.spec).view(pool.buffer).block_tokens[block, 3] += 1
    (finding, *_) = ask(two_pools, "fsck").findings
    assert finding.pool == "alpha-1"
    assert str(block) in finding.subject
    assert health(two_pools)[0] == "NOT_SERVING"
    assert not ask(two_pools, "fsck", pool="beta-1").findings
    assert health(two_pools)[0] == "NOT_SERVING"  # another pool's clean check changes nothing


def test_findings_beyond_a_frame_are_counted_and_not_listed():
    many = [Finding("leak", f"block {i}", "free, and in no list") for i in range(MAX_FINDINGS + 5)]
    shown = list(reported("p", many))
    assert len(shown) == MAX_FINDINGS + 1
    assert "5 more" in shown[-1].message


def test_evict_drops_the_oldest_cached_blocks_and_flush_the_rest(view):
    assert ask(view, "evict", count=3).evicted == 3
    assert ask(view, "flush").evicted == 1
    assert ask(view, "flush", pool="alpha-1").evicted == 0
    assert ask(view, "evict", count=3).evicted == 0
    assert ask(view, "status").pools[0].blocks.sealed == 2  # the running sequence's


def test_evict_needs_a_count_and_one_pool(two_pools):
    with pytest.raises(Invalid, match="count"):
        ask(two_pools, "evict", pool="alpha-1")
    with pytest.raises(Invalid, match="pool"):
        ask(two_pools, "evict", count=1)
    with pytest.raises(NotFound, match="gamma"):
        ask(two_pools, "flush", pool="gamma")
    assert ask(two_pools, "flush").evicted == 4
