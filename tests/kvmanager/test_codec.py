"""Every message survives protobuf; every malformed field is Invalid and named; the error codes are the contract's."""

import inspect
from array import array
from dataclasses import fields, is_dataclass, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager import errors, messages
from kvmanager.attachment import Attached, AttachSpec
from kvmanager.codec import (
    decode_error,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from kvmanager.codec_attach import KV_DTYPES, decode_attach, decode_attached, encode_attach, encode_attached
from kvmanager.errors import BY_CODE, Invalid, KvError, Mismatch
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    CopyOrder,
    Drain,
    Fenced,
    FinishReason,
    Fork,
    Grant,
    Granted,
    Handover,
    Heartbeat,
    Holding,
    Holdings,
    Numbered,
    Opened,
    OpenKind,
    OpenOrAdopt,
    Refusal,
    Refused,
    Release,
    Reply,
    Resume,
    Retry,
    Revoke,
    SearchMember,
    SequenceRef,
    Wait,
    WorkerState,
)
from kvmanager.packing import pack, unpack

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
ids = st.lists(u32, max_size=20).map(tuple)
sequences = st.binary(min_size=16, max_size=16)
block = st.builds(BlockRef, u32, u32)
blocks = st.lists(block, max_size=8).map(tuple)
members = st.builds(
    SearchMember,
    sequences,
    ids,
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(FinishReason),
)
text = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=60)
code = st.sampled_from(sorted(BY_CODE))
rates = st.floats(0, 1e12)

forks = st.builds(
    Fork,
    parent=sequences,
    parent_epoch=u64,
    group=sequences,
    index=st.integers(0, 63),
    request=st.binary(max_size=100),
    max_tokens=st.integers(1, 2**31 - 1),
    priority=st.integers(-1000, 1000),
    arrival_ns=st.integers(0, 2**63 - 1),
    tenant=st.binary(min_size=32, max_size=32),
    request_id=text,
    beam=st.booleans(),
    result=st.booleans(),
)
entries = st.builds(
    CommitEntry,
    sequence=sequences,
    epoch=u64,
    base_recorded=u32,
    base_kv=u32,
    token_ids=ids,
    kv_len=u32,
    blocks=blocks,
    preempted=st.booleans(),
    finish=st.sampled_from(FinishReason),
    stop_token_id=u32,
    copies_done=u32,
    fork=st.none() | forks,
    score=st.floats(allow_nan=False, allow_infinity=False),
)
REQUESTS = {
    Grant: st.builds(Grant, count=st.integers(1, 2**18), starving=st.booleans()),
    OpenOrAdopt: st.builds(
        OpenOrAdopt,
        sequence=sequences,
        group=sequences,
        index=st.integers(0, 63),
        request=st.binary(max_size=100),
        token_ids=st.lists(u32, min_size=1, max_size=20).map(tuple),
        max_tokens=st.integers(1, 2**31 - 1),
        priority=st.integers(-1000, 1000),
        arrival_ns=st.integers(0, 2**63 - 1),
        tenant=st.binary(min_size=32, max_size=32),
        bypass_prefix=st.booleans(),
        request_id=text,
        no_cache=st.booleans(),
        prompt_len=u32,
        beam_width=st.integers(0, 64),
    ),
    Commit: st.builds(Commit, step=u64, entries=st.lists(entries, max_size=4).map(tuple)),
    Release: st.builds(
        Release, rows=st.lists(st.builds(SequenceRef, sequences, u64), max_size=4).map(tuple), blocks=blocks
    ),
    Fenced: st.builds(Fenced, sequence=sequences, epoch=u64),
    Heartbeat: st.builds(
        Heartbeat,
        state=st.sampled_from([s for s in WorkerState if s not in (WorkerState.UNKNOWN, WorkerState.LOST)]),
        bound_ms=st.integers(0, 600_000),
        busy=st.booleans(),
        tokens_per_second=rates,
        wait_p99_ms=rates,
        **dict.fromkeys(("running", "waiting", "float_blocks"), u32),
        **dict.fromkeys(("step", "steps_waited", "preemptions", "replayed", "reprefilled"), u64),
        **dict.fromkeys(("prompt_tokens", "generation_tokens"), u64),
    ),
}
REPLIES = {
    Acked: st.builds(
        Acked,
        refusals=st.lists(st.builds(Refusal, sequences, u64, code, text), max_size=4).map(tuple),
        granted=blocks,
    ),
    Granted: st.builds(Granted, blocks=blocks),
    Opened: st.builds(
        Opened,
        sequence=sequences,
        epoch=u64,
        kind=st.sampled_from(OpenKind),
        recorded_len=u32,
        kv_len=u32,
        cached_len=u32,
        blocks=blocks,
        token_ids=ids,
        lost_len=u32,
        alone=st.booleans(),
        copies=st.lists(st.builds(CopyOrder, block, block, u32), max_size=2).map(tuple),
        members=st.lists(members, max_size=3).map(tuple),
    ),
    Wait: st.builds(
        Wait, sequence=sequences, needed_blocks=u32, available_blocks=u32, for_prefix=st.booleans()
    ),
    Retry: st.builds(Retry, sequence=sequences),
    Refused: st.builds(
        Refused, sequence=sequences, code=code, message=text, details=st.dictionaries(text, text, max_size=3)
    ),
    Revoke: st.builds(Revoke, sequence=sequences, epoch=u64),
    Holdings: st.builds(
        Holdings,
        sequences=st.lists(
            st.builds(Holding, sequences, u64, u32, st.sampled_from(FinishReason)), max_size=4
        ).map(tuple),
        blocks=blocks,
    ),
    Drain: st.builds(Drain),
    Handover: st.builds(Handover),
    Resume: st.builds(Resume),
}


def test_no_message_is_missing_here():
    assert set(REQUESTS) == {*get_args(Numbered), Heartbeat}
    assert set(REPLIES) == set(get_args(Reply))
    known = {c for _, c in inspect.getmembers(messages, is_dataclass)}
    assert known == {*REQUESTS, *REPLIES, CommitEntry, Fork}
    for kind, strategy in {**REQUESTS, **REPLIES}.items():
        assert [f.name for f in fields(kind)] == list(inspect.signature(kind).parameters), strategy


@given(st.one_of(*REQUESTS.values()), sequences, u64, u64)
def test_every_request_survives_the_wire(message, session, boot_epoch, number):
    envelope = encode_request(message, session, boot_epoch, number)
    arrived = pb.DaemonRequest.FromString(envelope.SerializeToString())
    assert (arrived.session, arrived.boot_epoch, arrived.number) == (session, boot_epoch, number)
    assert decode_request(arrived) == message


@given(st.one_of(*REPLIES.values()), u64, u64)
def test_every_reply_survives_the_wire(message, boot_epoch, number):
    envelope = encode_reply(message, boot_epoch, number)
    arrived = pb.DaemonReply.FromString(envelope.SerializeToString())
    assert (arrived.boot_epoch, arrived.number) == (boot_epoch, number)
    assert decode_reply(arrived) == message


def test_token_ids_may_come_as_any_sequence():
    opened = OpenOrAdopt(
        sequence=bytes(16),
        group=bytes(16),
        index=0,
        request=b"",
        token_ids=array("I", [1, 2]),
        max_tokens=1,
        priority=0,
        arrival_ns=0,
        tenant=bytes(32),
    )
    assert decode_request(encode_request(opened, b"", 0, 1)) == replace(opened, token_ids=(1, 2))


@given(st.lists(u32, max_size=50))
def test_packed_ids_are_little_endian_words(values):
    data = pack(values)
    assert data == b"".join(value.to_bytes(4, "little") for value in values)
    assert list(unpack(data, "ids", 50)) == values


# ------------------------------------------------------------------------------------------- refusals

OPEN = encode_request(
    OpenOrAdopt(
        sequence=bytes(16),
        group=bytes(16),
        index=0,
        request=b"",
        token_ids=(1,),
        max_tokens=1,
        priority=0,
        arrival_ns=0,
        tenant=bytes(32),
    ),
    b"",
    0,
    1,
).open_or_adopt


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("sequence", bytes(15)),
        ("sequence", b""),
        ("group", bytes(17)),
        ("index", 64),
        ("request", bytes(64 * 1024 + 1)),
        ("token_ids", b""),
        ("token_ids", b"12345"),
        ("token_ids", bytes(4 * 2**20 + 4)),
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("priority", 1001),
        ("priority", -1001),
        ("arrival_ns", 2**63),
        ("tenant", bytes(31)),
        ("request_id", "x" * 129),
        ("request_id", "a\x00b"),
    ],
)
def test_each_field_of_an_open_has_its_bounds(field, bad):
    envelope = pb.DaemonRequest(open_or_adopt=OPEN)
    setattr(envelope.open_or_adopt, field, bad)
    with pytest.raises(Invalid, match=field):
        decode_request(envelope)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"grant": pb.Grant(count=0)}, "count"),
        ({"grant": pb.Grant(count=2**18 + 1)}, "count"),
        ({"commit": pb.Commit(entries=[pb.CommitEntry(sequence=b"x")])}, "entries.sequence"),
        (
            {"commit": pb.Commit(entries=[pb.CommitEntry(sequence=bytes(16), blocks=b"1234")])},
            "entries.blocks",
        ),
        (
            {"commit": pb.Commit(entries=[pb.CommitEntry(sequence=bytes(16), token_ids=b"123")])},
            "entries.token_ids",
        ),
        ({"commit": pb.Commit(entries=[pb.CommitEntry(sequence=bytes(16), finish=9)])}, "entries.finish"),
        ({"commit": pb.Commit(entries=[pb.CommitEntry()] * 16_385)}, "entries"),
        ({"release": pb.Release(rows=[pb.SequenceRef()])}, "rows.sequence"),
        ({"release": pb.Release(blocks=bytes(12))}, "blocks"),
        ({"fenced": pb.Fenced()}, "sequence"),
        ({"heartbeat": pb.Heartbeat(state=0)}, "state"),
        ({"heartbeat": pb.Heartbeat(state=pb.WORKER_STATE_LOST)}, "state"),
        ({"heartbeat": pb.Heartbeat(state=77)}, "state"),
        ({"heartbeat": pb.Heartbeat(state=4, bound_ms=600_001)}, "bound_ms"),
        ({"heartbeat": pb.Heartbeat(state=4, tokens_per_second=float("nan"))}, "tokens_per_second"),
        ({"heartbeat": pb.Heartbeat(state=4, wait_p99_ms=float("inf"))}, "wait_p99_ms"),
        ({"status": pb.StatusRequest()}, "body"),
        ({}, "body"),
    ],
)
def test_malformed_messages_of_workers_name_the_field(body, field):
    with pytest.raises(Invalid, match=field):
        decode_request(pb.DaemonRequest(**body))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"parent": b"x"}, "fork.parent"),
        ({"group": b""}, "fork.group"),
        ({"index": 64}, "fork.index"),
        ({"request": bytes(65537)}, "fork.request bytes"),
        ({"max_tokens": 0}, "fork.max_tokens"),
        ({"priority": 1001}, "fork.priority"),
        ({"arrival_ns": 2**63}, "fork.arrival_ns"),
        ({"tenant": bytes(31)}, "fork.tenant"),
        ({"request_id": "x" * 129}, "fork.request_id"),
    ],
)
def test_a_malformed_fork_names_the_field(change, field):
    good = {"parent": bytes(16), "group": bytes(16), "max_tokens": 1, "tenant": bytes(32)}
    entry = pb.CommitEntry(sequence=bytes(16), fork=pb.Fork(**(good | change)))
    with pytest.raises(Invalid, match=field):
        decode_request(pb.DaemonRequest(commit=pb.Commit(entries=[entry])))


def test_a_copy_order_names_one_block_on_each_side():
    two = pb.CopyOrder(source=pack((1, 1)), destination=pack((1, 1, 2, 1)))
    for order, field in ((pb.CopyOrder(), "copies.source"), (two, "copies.destination")):
        with pytest.raises(Invalid, match=field):
            decode_reply(pb.DaemonReply(opened=pb.Opened(sequence=bytes(16), copies=[order])))


# ------------------------------------------------------------------------------------------- errors


def test_error_codes_are_those_of_the_contract():
    names = {value: name.removeprefix("ERROR_CODE_") for name, value in pb.ErrorCode.items() if value}
    spelled = {code: snake(cls.__name__) for code, cls in BY_CODE.items()}
    assert spelled == names | {KvError.code: "KV_ERROR"}
    assert names[KvError.code] == "INTERNAL"
    assert errors.DeadlineExceeded not in BY_CODE.values()


def snake(name):
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_")


@given(code, text, st.dictionaries(text, text, max_size=3))
def test_errors_arrive_as_what_they_were(number, message, details):
    error = BY_CODE[number](message)
    error.details = details
    found = decode_error(pb.Error.FromString(encode_error(error).SerializeToString()))
    assert (type(found), found.message, found.details) == (type(error), message, details)


@pytest.mark.parametrize("key", ["message", "self", "code", ""])
def test_details_of_a_peer_are_never_arguments(key):
    found = decode_error(pb.Error(code=2, message="gone", details={key: "x"}))
    assert (type(found), found.message, found.details) == (errors.NotFound, "gone", {key: "x"})


def test_an_unknown_code_is_an_internal_error():
    assert type(decode_error(pb.Error(code=999, message="?"))) is KvError


def test_an_error_reply_is_raised():
    with pytest.raises(errors.Fenced, match="old"):
        decode_reply(pb.DaemonReply(error=encode_error(errors.Fenced("old"))))


# ------------------------------------------------------------------------------------------- attach

names = st.text(st.characters(codec="ascii", exclude_categories=("C", "Z")), min_size=1, max_size=32)
specs = st.builds(
    AttachSpec,
    model=names,
    model_fingerprint=st.binary(min_size=32, max_size=32),
    dtype=st.sampled_from(("float32", "bfloat16")),
    vocab_size=st.integers(1, 2**24),
    device=names,
    num_layers=st.integers(1, 1024),
    num_kv_heads=st.integers(1, 1024),
    head_dim=st.integers(1, 1024),
    block_size=st.sampled_from([2**n for n in range(11)]),
    kv_dtype=st.sampled_from(KV_DTYPES),
    layout_version=st.integers(1, 2**16),
    max_model_len=st.integers(1, 2**20),
    max_num_seqs=st.integers(1, 2**14),
    worker_id=st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True),
    endpoint=names.map(lambda name: f"/{name}"),
    peak_bytes=st.integers(0, 2**62),
    resume_session=st.sampled_from((b"", bytes(range(16)))),
)


@given(specs)
def test_a_workers_statement_survives_the_wire(spec):
    assert decode_attach(pb.AttachRequest.FromString(encode_attach(spec).SerializeToString())) == spec


def test_the_answer_survives_the_wire():
    answer = Attached(
        session=bytes(16),
        boot_epoch=3,
        pool="p",
        num_blocks=7,
        pool_bytes=1,
        metadata_bytes=2,
        nonce=bytes(16),
        exporter="cuda-vmm",
        allocation_bytes=5,
        number=2**40,
    )
    assert decode_attached(pb.AttachReply.FromString(encode_attached(answer).SerializeToString())) == answer


def test_another_protocol_version_is_refused():
    with pytest.raises(Mismatch, match="protocol_version"):
        decode_attach(pb.AttachRequest(protocol_version=2))


@given(specs)
def test_a_former_session_is_named_whole_or_not_at_all(spec):
    request = encode_attach(replace(spec, resume_session=bytes(15)))
    with pytest.raises(Invalid, match="resume_session"):
        decode_attach(request)
