"""holdfast.wire: what is a frame, and that nothing else gets through."""

import contextlib

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import wire
from holdfast.v1 import compute_pb2, generate_pb2, kvmanager_pb2

KINDS = [
    kvmanager_pb2.AttachRequest,
    kvmanager_pb2.AttachReply,
    kvmanager_pb2.DaemonRequest,
    kvmanager_pb2.DaemonReply,
    compute_pb2.WorkerRequest,
    compute_pb2.WorkerReply,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
many = settings(max_examples=300, deadline=None)

REQUEST = kvmanager_pb2.DaemonRequest(
    session=b"s" * 16,
    boot_epoch=3,
    number=7,
    commit=kvmanager_pb2.Commit(step=5, entries=[kvmanager_pb2.CommitEntry(sequence=b"q" * 16, kv_len=9)]),
)


def whole(message):
    """`message` with its strings and sub-messages set, of a oneof the last."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, "name")
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
            getattr(message, field.name).SetInParent()
    return message


@kinds
def test_a_frame_gives_back_its_message(kind):
    message = whole(kind())
    assert wire.decode(kind, wire.encode(message)) == message


def test_a_frame_begins_with_its_four_bytes():
    assert wire.encode(REQUEST)[:4] == b"HF\x01\x03"
    assert wire.decode(kvmanager_pb2.DaemonRequest, wire.encode(REQUEST)) == REQUEST


def test_every_kind_has_its_own_number():
    assert len({wire.encode(kind())[3] for kind in KINDS}) == len(KINDS)


@kinds
def test_a_frame_of_another_kind_is_refused(kind):
    for other in KINDS:
        if other is not kind:
            with pytest.raises(wire.FrameError, match="frame kind"):
                wire.decode(kind, wire.encode(other()))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_frame_of_another_version_is_refused_with_both(version):
    frame = bytearray(wire.encode(REQUEST))
    frame[2] = version
    with pytest.raises(wire.FrameError, match=f"protocol version {version}, this side speaks 1"):
        wire.decode(kvmanager_pb2.DaemonRequest, bytes(frame))


@pytest.mark.parametrize("frame", [b"", b"H", b"HF\x01"])
def test_a_frame_shorter_than_its_header_is_refused(frame):
    with pytest.raises(wire.FrameError, match=r"bounds 4\.\."):
        wire.decode(kvmanager_pb2.DaemonRequest, frame)


def test_a_frame_over_the_limit_is_refused_before_it_is_parsed():
    """The bytes beyond the header would not parse, and the message is about the size."""
    frame = wire.encode(REQUEST)[:4] + b"\xff" * (wire.MAX_FRAME_BYTES - 3)
    with pytest.raises(wire.FrameError, match=f"frame of {wire.MAX_FRAME_BYTES + 1} bytes"):
        wire.decode(kvmanager_pb2.DaemonRequest, frame)


def test_the_largest_prompt_fits():
    message = compute_pb2.WorkerRequest(submit=compute_pb2.Submit(token_ids=bytes(4 * 2**20)))
    assert wire.decode(compute_pb2.WorkerRequest, wire.encode(message)) == message


def test_a_message_of_ours_over_the_limit_is_our_bug():
    message = compute_pb2.WorkerRequest(submit=compute_pb2.Submit(token_ids=bytes(wire.MAX_FRAME_BYTES)))
    with pytest.raises(AssertionError, match="frame of"):
        wire.encode(message)


def test_a_string_that_is_not_utf8_is_refused():
    body = compute_pb2.WorkerRequest(submit=compute_pb2.Submit(request_id="abcd")).SerializeToString()
    with pytest.raises(wire.FrameError, match="malformed"):
        wire.decode(compute_pb2.WorkerRequest, b"HF\x01\x05" + body.replace(b"abcd", b"\xff\xfe\xfd\xfc"))


def test_endless_nesting_is_refused():
    """Groups within groups of an unknown field: beyond the parser's own limit."""
    with pytest.raises(wire.FrameError, match="malformed"):
        wire.decode(compute_pb2.WorkerRequest, b"HF\x01\x05" + b"\x7b" * 100_000)


@kinds
@many
@given(data=st.binary(max_size=200), header=st.booleans())
def test_garbage_raises_frame_error_and_nothing_else(kind, data, header):
    frame = wire.encode(kind())[:4] + data if header else data
    with contextlib.suppress(wire.FrameError):
        assert isinstance(wire.decode(kind, frame), kind)


@many
@given(st.integers(0, 200), st.integers(0, 255), st.integers(0, 200))
def test_a_damaged_frame_raises_frame_error_and_nothing_else(place, value, length):
    frame = bytearray(wire.encode(REQUEST))
    frame[place % len(frame)] = value
    with contextlib.suppress(wire.FrameError):
        wire.decode(kvmanager_pb2.DaemonRequest, bytes(frame[: length + 1]))


def test_parse_is_for_bodies_without_a_frame():
    params = generate_pb2.SamplingParams(top_k=3)
    assert wire.parse(generate_pb2.SamplingParams, params.SerializeToString()) == params
    with pytest.raises(wire.FrameError, match="malformed SamplingParams"):
        wire.parse(generate_pb2.SamplingParams, b"\xff")
