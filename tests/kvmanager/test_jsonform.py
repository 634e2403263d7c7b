"""Messages as JSON: names as in the contract, every field there, enums as plain words."""

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands.jsonform import to_json, word


def test_every_field_is_there_even_when_nothing_was_set():
    shown = to_json(pb.WorkerInfo())
    assert list(shown) == [field.name for field in pb.WorkerInfo.DESCRIPTOR.fields]
    assert shown["pid"] == 0


def test_enums_are_lower_case_words_without_their_prefix():
    assert to_json(pb.WorkerInfo(state=pb.WORKER_STATE_READY))["state"] == "ready"
    assert to_json(pb.WorkerInfo())["state"] == "unspecified"


def test_an_enum_value_of_a_newer_peer_is_its_number():
    assert word(pb.WorkerState.DESCRIPTOR, 99) == "99"


def test_large_numbers_stay_numbers_and_bytes_become_hexadecimal():
    assert to_json(pb.PoolInfo(pool_bytes=2**40))["pool_bytes"] == 2**40
    assert to_json(pb.SequenceRef(sequence=b"\x00\xff", epoch=1)) == {"sequence": "00ff", "epoch": 1}


def test_messages_inside_messages_and_lists_are_converted_too():
    shown = to_json(pb.Status(pools=[pb.PoolInfo(name="a", blocks=pb.BlockCounts(free=3))]))
    assert shown["pools"][0]["blocks"]["free"] == 3
    assert to_json(pb.BlockInfo(token_ids=[1, 2]))["token_ids"] == [1, 2]


def test_omitted_fields_are_left_out():
    assert "token_ids" not in to_json(pb.BlockInfo(token_ids=[1]), frozenset({"token_ids"}))
