"""The daemon's answers to the command line, over the state of real pools: lists, pages, descriptions, verdicts."""

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.admin import HANDLERS, MAX_FINDINGS, reported
from kvmanager.errors import Conflict, Invalid, NotFound
from kvmanager.integrity import Finding
from kvmanager.layout import Geometry, MetaLayout, PoolLayout, PoolSpec
from kvmanager.messages import (
    Commit,
    CommitEntry,
    FinishReason,
    Grant,
    OpenOrAdopt,
    Release,
    SequenceId,
    SequenceRef,
)
from kvmanager.state import KvState

PROMPT = list(range(40))


class Pool:
    """A pool's state over its own buffer, and a session that works on it."""

    def __init__(self, name="alpha-1", num_blocks=512):
        self.spec = PoolSpec(
            name=name,
            geometry=Geometry(num_layers=2, num_kv_heads=1, head_dim=8, block_size=16, dtype="float32"),
            num_blocks=num_blocks,
            model="tiny",
            model_fingerprint=bytes(range(32)),
            device="cpu",
            dtype="bfloat16",
            max_model_len=256,
            max_num_seqs=128,
            vocab_size=1000,
            nonce=bytes(16),
        )
        self.buffer = bytearray(MetaLayout(self.spec).total_bytes)
        self.state = KvState.create(self.buffer, self.spec, time.monotonic_ns())
        self.number = 0
        self.session = self.state.attach(
            secrets.token_bytes(16),
            worker_id="w0",
            endpoint="/run/w0.sock",
            pid=1,
            start_time=1,
            now_ns=time.monotonic_ns(),
        )

    @property
    def pool_bytes(self):
        return PoolLayout(self.spec.geometry).block_bytes * self.spec.num_blocks

    @property
    def metadata_bytes(self):
        return len(self.buffer)

    def ask(self, message):
        self.number += 1
        return self.state.apply(self.session, self.number, message, time.monotonic_ns())[0].reply

    def open(self, name, prompt=PROMPT):
        return self.ask(
            OpenOrAdopt(
                sequence=SequenceId(name),
                group=name,
                index=0,
                request=b"",
                token_ids=prompt,
                max_tokens=50,
                priority=3,
                arrival_ns=1,
                tenant=bytes([0xAB]) * 32,
                request_id="r-" + name.hex()[:4],
            )
        )

    def prefill(self, opened, prompt=PROMPT, finish=FinishReason.NONE):
        missing = -(-len(prompt) // 16) - len(opened.blocks)
        entry = CommitEntry(
            sequence=opened.sequence,
            epoch=opened.epoch,
            base_recorded=opened.recorded_len,
            base_kv=opened.kv_len,
            token_ids=[7],
            kv_len=len(prompt),
            blocks=self.ask(Grant(count=missing)).blocks,
            finish=finish,
        )
        assert not self.ask(Commit(step=1, entries=[entry])).refusals

    def cache(self, prompt):
        """A finished sequence whose full blocks stay as cache."""
        opened = self.open(secrets.token_bytes(16), prompt)
        self.prefill(opened, prompt, FinishReason.LENGTH)
        self.ask(Release(rows=[SequenceRef(opened.sequence, opened.epoch)]))


@dataclass
class View:
    """A daemon without sockets."""

    pools: dict = field(default_factory=dict)
    workers: list = field(default_factory=list)
    boot_epoch: int = 3
    started: float = field(default_factory=time.monotonic)
    run_dir: Path = Path("/run/holdfast")
    memory_budget_bytes: int = 2**30
    ready: bool = True
    findings: dict = field(default_factory=dict)

    def worker_infos(self):
        return self.workers


NAMES = [bytes([i]) * 16 for i in range(1, 4)]


@pytest.fixture
def view():
    """One pool with a computed sequence, two that wait for their first step, and four cached blocks."""
    pool = Pool()
    pool.prefill(pool.open(NAMES[0]))
    for name in NAMES[1:]:
        pool.open(name, [500, 501])
    pool.cache([900 + i for i in range(64)])
    worker = pb.WorkerInfo(id="w0", pool="alpha-1", session="aa", state=pb.WORKER_STATE_READY)
    return View(pools={"alpha-1": pool}, workers=[worker])


@pytest.fixture
def two_pools(view):
    view.pools["beta-1"] = Pool("beta-1")
    return view


def ask(view, case, **request):
    kind = pb.DaemonRequest.DESCRIPTOR.fields_by_name[case].message_type._concrete_class
    return HANDLERS[case](view, kind(**request))


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


# ---------------------------------------------------------------------------------------------- list


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
