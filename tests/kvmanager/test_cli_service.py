"""The command line against a real keeper, daemon and worker: tables, JSON, exit codes, pipes, dead daemons."""

import contextlib
import os
import pty
import select
import subprocess

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.messages import FinishReason, Heartbeat, WorkerState
from tests.kvmanager.served import ENVIRON, PATIENCE_S, PROMPT, Service, Worker, command


@pytest.fixture(scope="module")
def service():
    with contextlib.closing(Service()) as service:
        yield service


@pytest.fixture(scope="module")
def busy(service):
    """The service with a worker that runs `story` and has 110 more sequences open."""
    with contextlib.closing(Worker(service.path)) as worker:
        worker.prefill(worker.open("story"))
        for i in range(110):
            worker.open(f"waiting-{i}", [i + 1, 2, 3])
        # A worker that captures is not judged by its silence: this one will not beat again.
        worker.link.heartbeat(Heartbeat(state=WorkerState.CAPTURING, step=5, running=111))
        worker.take(3)  # answered after the heartbeat was heard
        yield service


def keys(message, *omitted):
    return [field.name for field in message.DESCRIPTOR.fields if field.name not in omitted]


def story(busy):
    """The sequence that has computed its prompt."""
    items = busy.json("get", "sequences")["items"]
    return next(item for item in items if item["request_id"] == "story")


# ---------------------------------------------------------------------------------------------- looking


def test_health_is_serving_and_says_why_nothing_happens(service):
    done = service.run("health", check=0)
    assert done.stdout == "SERVING\n"
    assert service.json("health").keys() == {"health", "health_reason"}


def test_status_has_the_fields_of_the_contract(busy):
    shown = busy.json("status")
    assert list(shown) == keys(pb.Status)
    assert list(shown["pools"][0]) == keys(pb.PoolInfo)
    assert list(shown["workers"][0]) == keys(pb.WorkerInfo)
    assert shown["health"] == "SERVING"
    assert shown["workers"][0]["state"] == "capturing"
    counts = shown["pools"][0]["blocks"]
    states = ("free", "granted", "tail", "sealed", "quarantined")
    assert sum(counts[state] for state in states) == shown["pools"][0]["num_blocks"]


def test_status_for_people_has_health_memory_pools_and_workers(busy):
    shown = busy.run("status", check=0).stdout
    for part in ("SERVING", "MiB", "boot epoch 1", "tiny", "w0"):
        assert part in shown


@pytest.mark.parametrize(
    ("kind", "message", "omitted"),
    [
        ("blocks", pb.BlockInfo, {"token_ids"}),
        ("sequences", pb.SequenceInfo, {"blocks", "row"}),
        ("workers", pb.WorkerInfo, set()),
        ("pools", pb.PoolInfo, set()),
        ("tiers", pb.TierInfo, set()),
    ],
)
def test_lists_are_items_with_the_fields_of_the_contract(busy, kind, message, omitted):
    shown = busy.json("get", kind)
    assert list(shown) == ["items"]
    assert shown["items"]
    for item in shown["items"]:
        assert list(item) == ["kind", *keys(message, *omitted)]
        assert item["kind"] + "s" == kind


def test_several_kinds_come_in_one_list_in_the_order_asked_for(busy):
    kinds = [item["kind"] for item in busy.json("get", "workers,pool,sequences")["items"]]
    assert list(dict.fromkeys(kinds)) == ["worker", "pool", "sequence"]
    tables = busy.run("get", "workers,pools", check=0).stdout.split("\n\n")
    assert [table.split()[0] for table in tables] == ["ID", "NAME"]


def test_a_list_longer_than_a_page_is_shown_whole(busy):
    assert len(busy.json("get", "sequences")["items"]) == 111
    pool = busy.json("get", "pools")["items"][0]
    free = busy.json("get", "blocks", "--state", "free")["items"]
    assert len(free) == pool["blocks"]["free"] > 1000
    assert len({item["id"] for item in free}) == len(free)


def test_blocks_are_listed_by_state_and_without_one_all_but_the_free(busy):
    states = {item["state"] for item in busy.json("get", "blocks")["items"]}
    assert {"granted", "tail", "sealed"} >= states >= {"tail", "sealed"}
    sealed = busy.json("get", "blocks", "--state", "sealed")["items"]
    assert {item["state"] for item in sealed} == {"sealed"}
    assert len(sealed) == len(PROMPT) // 16


def test_no_headers_leaves_only_rows(busy):
    with_headers = busy.run("get", "workers", check=0).stdout.splitlines()
    without = busy.run("get", "workers", "--no-headers", check=0).stdout.splitlines()
    assert (len(with_headers), len(without)) == (2, 1)
    assert without[0].split()[0] == "w0"


def test_tables_in_a_pipe_hold_no_escape_and_no_box(busy):
    for verb in (["status"], ["get", "blocks,sequences,workers,pools,tiers"], ["fsck"]):
        shown = busy.spawn(*verb, TERM="xterm-256color", FORCE_COLOR="1").stdout
        assert shown.isascii()
        assert "\x1b" not in shown


def test_a_sequence_is_described_by_a_prefix_of_its_id_with_its_table_drawn(busy):
    found = story(busy)
    shown = busy.json("describe", "sequence", found["id"][:16])
    assert list(shown) == ["kind", *keys(pb.SequenceInfo)]
    assert shown["id"] == found["id"]
    assert len(shown["blocks"]) == shown["num_blocks"] == 3
    drawn = busy.run("describe", "sequence", found["id"], check=0).stdout
    first, second, third = shown["blocks"]
    assert f"0 - 47  #{first}  #{second}  ~{third}" in " ".join(drawn.split(" ")).replace("   ", "  ")
    assert "41 recorded, 40 of them prompt; 40 in the cache" in drawn


def test_a_sealed_block_is_described_with_its_tokens_and_its_sequence(busy):
    found = story(busy)
    row = busy.json("describe", "sequence", found["id"])["blocks"]
    shown = busy.json("describe", "block", str(row[1]))
    assert list(shown) == ["kind", *keys(pb.BlockInfo)]
    assert shown["token_ids"] == PROMPT[16:32]
    assert shown["sequences"] == [found["id"]]
    assert (shown["state"], shown["depth"], shown["refcount"]) == ("sealed", 1, 1)
    assert shown["parent_hash"] == busy.json("describe", "block", str(row[0]))["hash"]
    assert shown["hash"] in busy.run("describe", "block", str(row[1]), check=0).stdout


def test_workers_and_pools_are_described(busy):
    assert busy.json("describe", "worker", "w0")["step"] == 5
    pool = busy.json("get", "pools")["items"][0]
    assert busy.json("describe", "pool", pool["name"])["num_blocks"] == pool["num_blocks"]
    assert "capturing" in busy.run("describe", "worker", "w0", check=0).stdout
    assert pool["name"] in busy.run("describe", "pool", pool["name"], check=0).stdout


def test_fsck_of_a_sound_pool_is_clean(busy):
    assert busy.run("fsck", check=0).stdout.startswith("clean: 1 pools, ")
    assert busy.json("fsck")["findings"] == []


# ---------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "args",
    [
        ["describe", "block", "99999999"],
        ["describe", "sequence", "0" * 32],
        ["describe", "worker", "w9"],
        ["describe", "pool", "nothing"],
        ["get", "blocks", "--pool", "nothing"],
        ["fsck", "--pool", "nothing"],
        ["flush", "--pool", "nothing", "--yes"],
    ],
    ids=" ".join,
)
def test_what_is_not_there_exits_3(busy, args):
    done = busy.run(*args, check=3)
    assert done.stderr.startswith("kvmanager: no ")
    assert not done.stdout


def test_an_ambiguous_prefix_exits_7_and_says_how_many(busy):
    first = [item["id"][0] for item in busy.json("get", "sequences")["items"]]
    digit = max(first, key=first.count)
    done = busy.run("describe", "sequence", digit, check=7)
    assert f"{first.count(digit)} sequences begin with {digit}" in done.stderr


@pytest.mark.parametrize("name", ["x", "-1", "1.5", "0x11", "\u0663"])
def test_a_malformed_block_id_is_usage(busy, name):
    assert "is no block id" in busy.run("describe", "block", check=2, last=("--", name)).stderr


# ---------------------------------------------------------------------------------------------- changing


def test_flush_and_evict_drop_cached_blocks_only():
    with contextlib.closing(Service()) as service, contextlib.closing(Worker(service.path)) as worker:
        assert service.json("flush", "--yes") == {"evicted": 0}
        running = worker.open("running", [9, *PROMPT])
        worker.prefill(running, [9, *PROMPT])
        done = worker.open("done", PROMPT * 4)
        worker.prefill(done, PROMPT * 4, finish=FinishReason.LENGTH)
        worker.release(done)
        cached = service.json("get", "pools")["items"][0]["blocks"]["cached"]
        assert cached == len(PROMPT) * 4 // 16
        assert service.run("evict", "--count", "3", "--yes", check=0).stdout == "3 blocks evicted\n"
        assert service.json("evict", "--count", "2", "--yes") == {"evicted": 2}
        assert service.run("flush", "-y", check=0).stdout == f"{cached - 5} blocks evicted\n"
        assert service.json("get", "pools")["items"][0]["blocks"]["sealed"] == 2
        service.run("fsck", check=0)


def answered(service, answer):
    """Exit code and output of `flush` on a terminal where somebody types `answer`."""
    ours, theirs = pty.openpty()
    asking = subprocess.Popen(
        command("flush", "--run-dir", str(service.path)),
        env=ENVIRON,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, answer)
    code = asking.wait(PATIENCE_S)
    while select.select([ours], [], [], 0.1)[0]:
        shown += os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    return code, shown.decode()


def test_on_a_terminal_flush_asks_and_does_what_it_is_told(service):
    code, shown = answered(service, b"n\n")
    assert (code, "nothing changed" in shown, "evicted" in shown) == (1, True, False)
    code, shown = answered(service, b"y\n")
    assert (code, "0 blocks evicted" in shown) == (0, True)
    code, shown = answered(service, b"\x04")
    assert (code, "evicted" in shown) == (1, False)
