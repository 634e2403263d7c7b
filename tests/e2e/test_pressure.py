"""Clients that vanish, deadlines, a full pool, garbage: nothing hangs, every block comes back, fsck is clean."""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from gateway.client import Broken, CallError, Client, DeadlineExpired, InvalidRequest
from tests.e2e.conftest import Running, running, until
from tests.e2e.test_service import OPENING, collect
from tools.service import environment


def test_a_client_killed_mid_stream_frees_its_blocks(service: Running) -> None:
    argv = [
        sys.executable,
        "-m",
        "gateway",
        "generate",
        OPENING,
        "--max-tokens",
        "4000",
        "--target",
        service.target,
    ]
    client = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
    assert client.stdout is not None
    assert client.stdout.read(20)
    client.kill()
    client.wait()
    client.stdout.close()
    service.assert_clean()


async def test_a_deadline_ends_the_request_and_frees_its_blocks(service: Running) -> None:
    async with Client(service.target) as client:
        with pytest.raises((DeadlineExpired, Broken)):
            await collect(client, OPENING, max_tokens=4000, ignore_eos=True, timeout=1.5)
    service.assert_clean()


async def test_a_pool_filled_to_the_last_block_still_finishes_everything(small_service: Running) -> None:
    """24 requests of 200 tokens want five times what the pool holds."""
    async with Client(small_service.target) as client:
        options: dict[str, Any] = {"max_tokens": 160, "ignore_eos": True, "temperature": 0}
        alone = [await collect(client, f"Tale {number}: {OPENING}", **options) for number in (0, 23)]
        runs = [collect(client, f"Tale {number}: {OPENING}", **options) for number in range(24)]
        results = await asyncio.gather(*runs)
    assert [len(ids) for _, ids, _ in results] == [160] * 24
    assert [results[0][1], results[23][1]] == [ids for _, ids, _ in alone]
    assert int(small_service.pool().get("preemptions", 0)) >= 1
    small_service.assert_clean()


async def test_a_request_that_can_never_fit_says_both_numbers(small_service: Running) -> None:
    async with Client(small_service.target) as client:
        with pytest.raises(InvalidRequest, match="1008"):
            await collect(client, OPENING, max_tokens=2000)
        with pytest.raises(InvalidRequest, match="4096"):
            await collect(client, OPENING, max_tokens=5000)
    small_service.assert_clean()


async def test_garbage_on_every_socket_disturbs_nobody(service: Running) -> None:
    async with Client(service.target) as client:
        before = await collect(client, OPENING, max_tokens=40, temperature=0)
        during, _ = await asyncio.gather(
            collect(client, OPENING, max_tokens=40, temperature=0), asyncio.to_thread(throw_garbage, service)
        )
        after = await collect(client, OPENING, max_tokens=40, temperature=0)
    assert before[1] == during[1] == after[1]
    service.assert_clean()


def throw_garbage(service: Running) -> None:
    rng = random.Random(7)
    for path in service.service.run_dir.glob("*.sock"):
        packets = path.name in ("attach.sock", "keeper.sock")
        for _ in range(20):
            raw_bytes(str(path), socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM, rng)
        if not packets:
            zmq_frames(str(path), rng)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", service.service.port)) as peer:
            peer.sendall(rng.randbytes(200))


def raw_bytes(path: str, kind: socket.SocketKind, rng: random.Random) -> None:
    with socket.socket(socket.AF_UNIX, kind) as peer:
        peer.connect(path)
        with contextlib.suppress(OSError):  # dropped by the other side, as it should
            for _ in range(5):
                peer.send(rng.randbytes(rng.randrange(1, 4000)))


def zmq_frames(path: str, rng: random.Random) -> None:
    """Well-formed ZeroMQ with senseless contents, from a peer that never reads."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 200
        peer.connect(f"ipc://{path}")
        for number in range(300):
            header = bytes((0x48, 0x46, number % 3, number % 9))
            peer.send_multipart([header + rng.randbytes(rng.randrange(200))] * (1 + number % 4))


def test_the_service_leaves_no_process_and_no_socket_behind() -> None:
    with running() as one:
        pids = [part.process.pid for part in one.service.parts if part.process]
        run_dir = one.service.run_dir
        paths = list(run_dir.glob("*.sock"))
    assert len(paths) == 4
    assert not [path for path in paths if path.exists()]
    until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


async def test_errors_name_the_field_and_the_bound(service: Running) -> None:
    async with Client(service.target) as client:
        for field, value in {"temperature": -1, "top_p": 0, "n": 65, "max_tokens": 0, "logprobs": 21}.items():
            with pytest.raises(CallError, match=field):
                await collect(client, OPENING, **{"max_tokens": 4} | {field: value})
