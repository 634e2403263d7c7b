"""Garbage on every socket: nothing hangs, others are served, the tables stay clean."""

import array
import os
import random
import signal
import socket
import struct
from pathlib import Path

import pytest
import zmq

from holdfast import wire
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import fds
from kvmanager.client import attach
from kvmanager.codec import encode_request
from kvmanager.codec_attach import encode_attach
from kvmanager.errors import Invalid, KvError
from kvmanager.messages import Commit, CommitEntry, Grant
from tests.kvmanager.processes import PATIENCE_S, Service, Worker, attach_spec, eventually


@pytest.fixture(scope="module")
def service():
    with Service("--kv-memory", "4MiB") as service:
        yield service


@pytest.fixture(scope="module")
def worker(service):
    with Worker(service.sockets, worker_id="good") as worker:
        yield worker


@pytest.fixture(autouse=True)
def unharmed(service, worker):
    """After each piece of garbage: the same daemon serves, answers a worker, and its tables are clean."""
    pid = service.status().pid
    yield
    assert service.status().pid == pid
    assert len(worker.ask(Grant(count=1)).blocks) == 1
    assert service.fsck() == []


@pytest.fixture
def dealer(service):
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"ipc://{service.sockets.daemon}")
    yield socket
    context.destroy(linger=0)


def answer(dealer):
    assert dealer.poll(PATIENCE_S * 1000)
    return wire.decode(pb.DaemonReply, dealer.recv())


def test_random_frames_are_dropped_and_a_good_one_after_them_is_answered(dealer):
    generator = random.Random(1)
    for size in (0, 1, 3, 4, 5, 64, 1000, 100_000):
        dealer.send(generator.randbytes(size))
        dealer.send(wire.encode(pb.DaemonRequest())[:4] + generator.randbytes(size))
    dealer.send(wire.encode(pb.DaemonRequest(number=9, status=pb.StatusRequest())))
    while answer(dealer).number != 9:  # random bytes may be a message that says nothing: an Error
        pass


@pytest.mark.parametrize("position", [0, 2, 3])
def test_other_protocols_versions_and_kinds_are_dropped(dealer, service, position):
    frame = bytearray(wire.encode(pb.DaemonRequest(number=1, status=pb.StatusRequest())))
    frame[position] ^= 0x55
    dealer.send(bytes(frame))
    assert not dealer.poll(200)


def test_an_empty_envelope_is_answered(dealer):
    dealer.send(wire.encode(pb.DaemonRequest(number=3)))
    reply = answer(dealer)
    assert (reply.number, reply.error.code) == (3, Invalid.code)


def test_a_frame_over_the_limit_costs_its_sender_the_connection_only(dealer):
    dealer.send(bytes(wire.MAX_FRAME_BYTES + 1))
    assert not dealer.poll(200)


def test_five_thousand_frames_in_one_message_are_dropped(dealer):
    dealer.send_multipart([b"x" * 900] * 5000)
    dealer.send(wire.encode(pb.DaemonRequest(number=4, status=pb.StatusRequest())))
    assert answer(dealer).number == 4


def test_raw_bytes_on_the_daemons_stream_socket(service):
    sockets = []
    for payload in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" + bytes(8) + b"\x7f" + b"x" * 1000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(service.sockets.daemon))
        sock.sendall(payload)
        sockets.append(sock)
    service.status()
    for sock in sockets:
        sock.close()


def garbage_packets(sockets):
    good = wire.encode(encode_attach(attach_spec(sockets)))
    yield os.urandom(100)
    yield b"x" * fds.MAX_PACKET_BYTES
    yield good[:2] + b"\x63" + good[3:]
    yield good[: len(good) // 2]
    yield wire.encode(pb.DaemonRequest(status=pb.StatusRequest()))


def test_garbage_on_the_attachment_socket_is_hung_up_on(service):
    for packet in garbage_packets(service.sockets):
        with fds.connect(service.sockets.attach, PATIENCE_S) as sock:
            fds.send(sock, packet)
            assert sock.recv(100) == b""


def test_packets_over_the_limit_are_hung_up_on(service):
    for path in (service.sockets.attach, service.sockets.keeper):
        with fds.connect(path, PATIENCE_S) as sock:
            sock.sendmsg([b"x" * (fds.MAX_PACKET_BYTES + 1)])
            assert sock.recv(100) == b""


@pytest.mark.parametrize("name", ["attach", "keeper"])
def test_surplus_descriptors_are_hung_up_on_and_closed(service, name):
    path = getattr(service.sockets, name)
    pid = service.status().pid if name == "attach" else service.process.pid
    with fds.connect(path, PATIENCE_S) as warm:
        before = descriptors(pid)
        for count in (1, 5, 100, 250):
            with fds.connect(path, PATIENCE_S) as sock:
                rights = array.array("i", [warm.fileno()] * count)
                sock.sendmsg([b"GET x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                assert sock.recv(100) == b"" or name == "keeper"
        service.status()
        assert descriptors(pid) <= before + 2  # connections still being closed


def descriptors(pid):
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_two_hundred_idle_connections_keep_nobody_out(service):
    idle = [fds.connect(service.sockets.attach, PATIENCE_S) for _ in range(200)]
    try:
        with Worker(service.sockets, worker_id="late") as late:
            assert late.take(1)
    finally:
        for sock in idle:
            sock.close()


def test_idle_connections_to_the_keeper_keep_no_daemon_out():
    with Service("--kv-memory", "4MiB") as service:
        pid = service.status().pid
        idle = [fds.connect(service.sockets.keeper, PATIENCE_S) for _ in range(100)]
        os.kill(pid, signal.SIGKILL)
        eventually(service.status, lambda status: status.pid != pid)
        for sock in idle:
            sock.close()


@pytest.mark.parametrize(
    "request_text", [b"", b" ", b"PUT", b"PUT x", b"GET ../x", b"DROP attach.sock", b"\xff\xfe"]
)
def test_the_keeper_answers_nonsense_with_no(service, request_text):
    with fds.connect(service.sockets.keeper, PATIENCE_S) as sock:
        if request_text:
            fds.send(sock, request_text)
            assert sock.recv(200).startswith(b"NO ")


def test_bad_attach_fields_are_named(service):
    cases = {
        "worker_id": "Not A Name",
        "endpoint": "relative",
        "block_size": 12,
        "num_layers": 0,
        "max_num_seqs": 10**6,
        "model": "",
        "kv_dtype": "int4",
        "model_fingerprint": b"short",
    }
    for field, value in cases.items():
        with pytest.raises(Invalid) as caught:
            attach(service.sockets, attach_spec(service.sockets, **{field: value}), PATIENCE_S)
        assert field.removeprefix("kv_") in caught.value.message


def test_a_session_that_sends_malformed_fields_gets_an_error_and_no_effect(service):
    with Worker(service.sockets, worker_id="clumsy") as clumsy:
        clumsy.take(1)
        entry = CommitEntry(sequence=bytes(16), epoch=1, base_recorded=0, base_kv=0, kv_len=0)
        envelope = encode_request(Commit(step=1, entries=[entry]), clumsy.attachment.session, 1, 2)
        envelope.commit.entries[0].blocks = b"12345"
        clumsy.link.socket.send(wire.encode(envelope))
        with pytest.raises(Invalid, match=r"entries\.blocks"):
            clumsy.answers([2])


def test_thousands_of_random_envelopes(dealer):
    """Random but well-formed protobuf: field numbers, types and lengths of all kinds."""
    generator = random.Random(2)
    header = wire.encode(pb.DaemonRequest())[:4]
    for _ in range(3000):
        dealer.send(header + b"".join(random_field(generator) for _ in range(generator.randrange(4))))
    dealer.send(wire.encode(pb.DaemonRequest(number=77, status=pb.StatusRequest())))
    while True:
        try:
            if answer(dealer).number == 77:
                break
        except KvError:
            continue


def random_field(generator):
    number = generator.choice([1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 20, 21, 30, 31, 32, 36])
    body = generator.randbytes(generator.randrange(12))
    if number in (2, 3):
        return bytes([number << 3, generator.randrange(128)])
    return (
        struct.pack("B", number << 3 & 0x7F | 2) + bytes([len(body)]) + body
        if number < 16
        else (bytes([(number << 3 | 2) & 0x7F | 0x80, (number << 3 | 2) >> 7, len(body)]) + body)
    )
