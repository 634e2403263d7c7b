"""Processes of the command line: serve and keeper, daemons that are dead, stopped or have found something."""

import contextlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.keeper_link import KeeperLink
from tests.kvmanager.served import ENVIRON, PATIENCE_S, PROMPT, Service, Worker, called, command, wait_for


@pytest.fixture(scope="module")
def service():
    with contextlib.closing(Service()) as service:
        yield service


def test_nobody_at_the_socket_exits_4():
    with contextlib.closing(Service()) as gone:
        pass
    for verb in (["status"], ["health"], ["get", "blocks"], ["flush", "--yes"]):
        done = gone.run(*verb, check=4)
        assert "no KV manager" in done.stderr
        assert not done.stdout


def test_a_silent_daemon_exits_5_at_the_timeout_and_130_at_ctrl_c():
    with contextlib.closing(Service()) as stuck:
        with stopped(stuck.process.pid, stuck.daemon_pid()):
            assert "did not answer within 0.3 s" in stuck.run("status", "--timeout", "0.3", check=5).stderr
            with subprocess.Popen(
                command("status", "--timeout", "60", "--run-dir", str(stuck.path)),
                env=ENVIRON,
                stderr=subprocess.PIPE,
            ) as asking:
                with pytest.raises(subprocess.TimeoutExpired):
                    asking.wait(2)  # it is asking, not starting
                asking.send_signal(signal.SIGINT)
                assert asking.wait(PATIENCE_S) == 130
                assert b"Traceback" not in asking.stderr.read()


@contextlib.contextmanager
def stopped(keeper, daemon):
    """Both stand still: the keeper would replace a daemon that is silent for long, in the middle of the test."""
    os.kill(keeper, signal.SIGSTOP)
    os.kill(daemon, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon, signal.SIGCONT)
        os.kill(keeper, signal.SIGCONT)


def test_a_finding_exits_1_and_ends_health():
    """The metadata is spoilt behind the daemon's back; fsck says so and health follows."""
    with contextlib.closing(Service()) as service, contextlib.closing(Worker(service.path)) as worker:
        worker.prefill(worker.open("story"))
        keeper = KeeperLink(service.path / "keeper.sock")
        (name,) = [name for name in keeper.names() if name.startswith("meta.")]
        metadata = keeper.get(name)
        with mmap.mmap(metadata, 0) as buffer:
            tokens = struct.pack("<16I", *PROMPT[:16])
            at = buffer.find(tokens)
            assert at > 0
            buffer[at] ^= 1
        os.close(metadata)
        keeper.close()
        shown = service.run("fsck", check=1).stdout
        assert shown.splitlines()[0].split() == ["POOL", "KIND", "SUBJECT", "MESSAGE"]
        assert list(service.json("fsck", check=1)["findings"][0]) == [
            field.name for field in pb.FsckFinding.DESCRIPTOR.fields
        ]
        done = service.run("health", check=1)
        assert done.stdout == "NOT_SERVING\n"
        assert "findings" in done.stderr
        assert service.run("status", check=0).stdout.startswith("Health         NOT_SERVING")


def test_ctrl_c_ends_serve_with_exit_code_0_and_leaves_no_socket():
    service = Service()
    try:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(PATIENCE_S) == 0
        assert not list(service.path.glob("*.sock"))
    finally:
        service.close()


def test_a_second_serve_in_the_same_run_directory_exits_7(service):
    done = service.spawn("serve", "--kv-memory", "24MiB", check=7)
    assert "another keeper" in done.stderr


def test_serve_refuses_settings_out_of_bounds():
    for flag, value in (("--kv-memory", "12parsec"), ("--max-workers", "0"), ("--log-level", "loud")):
        assert flag in called("serve", flag, value, check=2).stderr


@contextlib.contextmanager
def started(argv, **where):
    """A program that goes on until it is told to end; killed if the test fails before."""
    process = subprocess.Popen(
        argv, env=ENVIRON, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **where
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_folder_it_is_started_in_replaces_no_module(tmp_path):
    for name in ("selectors.py", "random.py", "structlog.py"):
        (tmp_path / name).write_text("raise SystemExit('not the module that was meant')\n")
    path = Path(tempfile.mkdtemp(prefix="hf"))
    script = [str(Path(sys.executable).parent / "kvmanager"), "serve", "--run-dir", str(path)]
    with started(script, cwd=tmp_path) as serve:
        wait_for(lambda: serve.poll() is not None or called("health", "--run-dir", str(path)).returncode == 0)
        serve.terminate()
        assert serve.wait(PATIENCE_S) == 0
    shutil.rmtree(path)


def test_keeper_and_daemon_run_as_two_services():
    path = Path(tempfile.mkdtemp(prefix="hf"))
    place = ["--run-dir", str(path)]
    with started(command("keeper", *place)) as keeper:
        wait_for((path / "keeper.sock").exists)
        with started(command("serve", *place, "--keeper", str(path / "keeper.sock"))) as daemon:
            wait_for(lambda: called("health", *place).returncode == 0)
            assert json.loads(called("status", *place, "-o", "json").stdout)["pid"] == daemon.pid
            daemon.terminate()
            assert daemon.wait(PATIENCE_S) == 0
        called("health", *place, "--timeout", "0.2", check=5)  # the keeper holds the socket, nobody reads
        keeper.terminate()
        assert keeper.wait(PATIENCE_S) == 0
    shutil.rmtree(path)
