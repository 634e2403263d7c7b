"""Making, finding again and dropping pools, with a real keeper; and which worker fits which pool."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.rundir import RunDir
from kvmanager import pools as pools_module
from kvmanager.attach import differences, geometry_of, place
from kvmanager.config import KvManagerSettings
from kvmanager.errors import Invalid, Mismatch, NoMemory
from kvmanager.keeper_link import KeeperError, KeeperLink
from kvmanager.layout import PoolLayout
from kvmanager.memory import MemfdExporter
from kvmanager.messages import SessionId
from kvmanager.pools import Pools
from tests.kvmanager.processes import ENVIRON, PATIENCE_S, ROOT, attach_spec, eventually

SOCKETS = RunDir(Path("/run/holdfast"))
SPEC = attach_spec(SOCKETS)


@pytest.fixture(scope="module")
def run_dir():
    path = Path(tempfile.mkdtemp(prefix="hf"))
    command = [sys.executable, "-m", "kvmanager.keeper", str(path), "json", "error"]
    process = subprocess.Popen(command, env=ENVIRON, cwd=ROOT)
    eventually((path / "keeper.sock").exists)
    yield path
    process.terminate()
    process.wait(PATIENCE_S)
    shutil.rmtree(path)


@pytest.fixture
def keeper(run_dir):
    keeper = KeeperLink(run_dir / "keeper.sock")
    yield keeper
    for name in keeper.names():
        keeper.drop(name)
    keeper.close()


@pytest.fixture
def settings(run_dir):
    return KvManagerSettings(run_dir=run_dir, kv_memory=4 * 2**20)


def new_pools(keeper):
    return Pools(keeper, {"memfd": MemfdExporter()}, lambda: None, contextlib.nullcontext)


def model(number):
    return replace(SPEC, model=f"m{number}", model_fingerprint=bytes([number]) * 32)


def use(pool):
    """A session, so that the pool is not idle."""
    session = SessionId(os.urandom(16))
    now = time.monotonic_ns()
    return pool.state.attach(session, worker_id="w", endpoint="/w", pid=1, start_time=1, now_ns=now)


def test_a_budget_of_more_blocks_than_a_pool_may_have_names_the_flag_and_the_most(keeper, settings):
    greedy = settings.model_copy(update={"kv_memory": 2**50})
    with pytest.raises(
        Invalid, match=r"^--kv-memory \d+ gives \d+ blocks .* at most 268435456; lower it"
    ) as caught:
        place(SPEC, new_pools(keeper), greedy)
    assert int(caught.value.details["most"]) == 2**28 * PoolLayout(geometry_of(SPEC)).block_bytes


def test_a_budget_above_the_hosts_memory_is_refused_where_a_pool_of_the_host_is_made(keeper, settings):
    greedy = settings.model_copy(update={"kv_memory": 900 * 2**40})
    large = replace(SPEC, num_layers=64, num_kv_heads=64, head_dim=128)
    with pytest.raises(Invalid, match=r"^--kv-memory 989560464998400 is more than the \d+ bytes .* lower it"):
        place(large, new_pools(keeper), greedy)
    assert keeper.names() == []


def test_the_keeper_holds_both_halves_of_a_pool_until_it_is_dropped(keeper, settings):
    pools = new_pools(keeper)
    pool = place(SPEC, pools, settings)
    assert keeper.names() == [f"meta.{pool.spec.name}", f"pool.{pool.spec.name}"]
    assert place(replace(SPEC, worker_id="w1", max_num_seqs=1), pools, settings) is pool
    pools.drop(pool, "test")
    assert keeper.names() == []
    assert list(pools) == []


def test_the_next_daemon_finds_the_same_pools(keeper, settings):
    first = new_pools(keeper)
    for number in (1, 2):
        place(model(number), first, settings)
    second = new_pools(keeper)
    second.recover()
    assert [pool.spec for pool in second] == [pool.spec for pool in first]
    assert {pool.state.boot_epoch for pool in second} == {2}


def test_half_a_pool_and_strange_names_are_dropped(keeper, settings):
    pool = place(SPEC, new_pools(keeper), settings)
    keeper.drop(f"pool.{pool.spec.name}")
    keeper.put("pool.alone", pool.pool_fd)
    keeper.put("other", pool.pool_fd)
    found = new_pools(keeper)
    found.recover()
    assert list(found) == []
    assert keeper.names() == []


def test_metadata_of_one_pool_beside_memory_of_another_is_not_trusted(keeper, settings):
    pools = new_pools(keeper)
    one, two = place(model(1), pools, settings), place(replace(model(2), head_dim=24), pools, settings)
    keeper.put(f"pool.{one.spec.name}", two.pool_fd)
    found = new_pools(keeper)
    found.recover()
    assert [pool.spec for pool in found] == [two.spec]
    assert f"meta.{one.spec.name}" not in keeper.names()


def test_idle_pools_make_room_the_first_made_first_and_used_ones_never(keeper, settings, monkeypatch):
    pools = new_pools(keeper)
    first, second, third = (place(model(number), pools, settings) for number in range(3))
    use(first)

    def room_for_three(size):
        if len(pools.by_name) > 2:
            raise NoMemory(f"{size} asked")

    monkeypatch.setattr(pools_module, "check_available", room_for_three)
    fourth = place(model(4), pools, settings)
    assert list(pools) == [first, third, fourth]
    assert f"pool.{second.spec.name}" not in keeper.names()
    for pool in (third, fourth):
        use(pool)
    with pytest.raises(NoMemory):
        place(model(5), pools, settings)
    assert list(pools) == [first, third, fourth]


def test_a_pool_that_cannot_be_made_leaves_nothing_behind(keeper, settings, monkeypatch):
    pools = new_pools(keeper)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    create = MemfdExporter.create

    def no_room_for_kv(self, label, size, beat):
        if label.startswith("pool."):
            raise NoMemory("full")
        return create(self, label, size, beat)

    monkeypatch.setattr(MemfdExporter, "create", no_room_for_kv)
    with pytest.raises(NoMemory):
        place(SPEC, pools, settings)
    assert keeper.names() == []
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_names_are_readable_unique_and_fit_for_the_keeper(keeper, settings):
    pools = new_pools(keeper)
    names = []
    for served in ("Org/My Model v1.0", "org-my-model-v1-0", "模型", "x" * 128):
        names.append(place(replace(SPEC, model=served), pools, settings).spec.name)
    assert names == [
        "org-my-model-v1-0-00010203",
        "org-my-model-v1-0-00010203-2",
        "model-00010203",
        "x" * 32 + "-00010203",
    ]


def test_num_blocks_override_wins_over_the_budget(keeper, settings):
    pools = new_pools(keeper)
    assert place(SPEC, pools, settings.model_copy(update={"num_blocks_override": 33})).spec.num_blocks == 33


CHANGES = {
    "model_fingerprint": bytes(32),
    "geometry.num_layers": 3,
    "geometry.num_kv_heads": 1,
    "geometry.head_dim": 8,
    "geometry.block_size": 8,
    "geometry.dtype": "bfloat16",
    "device": "cpu2",
    "vocab_size": 1001,
    "dtype": "bfloat16",
    "max_model_len": 513,
    "max_num_seqs": 17,
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_field_that_must_agree_is_compared_and_named(keeper, settings, field):
    pools = new_pools(keeper)
    pool = place(SPEC, pools, settings)
    use(pool)
    name = {"geometry.dtype": "kv_dtype"}.get(field, field.removeprefix("geometry."))
    other = replace(SPEC, **{name: CHANGES[field]})
    assert [difference.field for difference in differences(other, pool.spec)] == [field]
    with pytest.raises(Mismatch, match=field):
        place(other, pools, settings)


BEATS = """
import pathlib, sys, time
from kvmanager.keeper_link import KeeperLink
keeper = KeeperLink(pathlib.Path(sys.argv[1]))
for _ in range(600):
    keeper.settle()
    keeper.beat()
    time.sleep(0.0005)
print(keeper.names())
"""


def test_a_link_may_beat_for_minutes_without_a_request(keeper, run_dir):
    """600 beats are two minutes' worth; the kernel holds fewer than 300 answers. Who beats is killed if it stops."""
    command = [sys.executable, "-c", BEATS, str(run_dir / "keeper.sock")]
    done = subprocess.run(command, env=ENVIRON, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "[]\n"


def test_a_keeper_that_is_gone_is_an_error_not_a_hang(tmp_path):
    with pytest.raises(KeeperError, match="no keeper"):
        KeeperLink(tmp_path / "keeper.sock")
