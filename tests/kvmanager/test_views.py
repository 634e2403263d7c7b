"""What people read: tables by kind, descriptions, drawn block tables."""

import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands import views
from kvmanager.commands.kinds import BLOCKS, KINDS, NAMES, POOLS, SEQUENCES, WORKERS
from kvmanager.render import aligned

GEOMETRY = pb.Geometry(num_layers=2, num_kv_heads=1, head_dim=64, block_size=16, dtype="float32")
POOL = pb.PoolInfo(
    name="llama-1",
    model="llama",
    geometry=GEOMETRY,
    num_blocks=100,
    device="cpu",
    exporter="memfd",
    pool_bytes=100 * 2**20,
    blocks=pb.BlockCounts(free=60, granted=10, tail=5, sealed=25, cached=20, shared=2),
    prefix_queries=200,
    prefix_hits=50,
    sequences=5,
    tokens_held=123,
    partial_hits=9,
    prefix_waits=3,
    memory=pb.MemoryUse(
        slots=1600, allocated=160, reserved=160, cached=320, shared=32, fragmented=69, tokens=123
    ),
)
SEALED = pb.BlockInfo(
    pool="llama-1",
    id=17,
    generation=3,
    state="sealed",
    refcount=2,
    hash="ab" * 32,
    parent_hash="cd" * 32,
    depth=4,
    idle_seconds=192,
    indexed=True,
    sequences=["aa" * 16, "bb" * 16],
    token_ids=range(20),
)
SEQUENCE = pb.SequenceInfo(
    pool="llama-1",
    id="0123456789abcdef" * 2,
    request_id="story",
    worker="w0",
    epoch=1,
    prompt_len=40,
    recorded_len=151,
    kv_len=150,
    cached_len=32,
    state="open",
    num_blocks=11,
    age_seconds=12,
    blocks=range(90, 101),
    row=2,
)


def table(kind, *items):
    return aligned(kind.columns, [[column.cell(item) for column in kind.columns] for item in items])


def test_every_kind_has_its_reply_field_and_its_two_names():
    for kind in KINDS:
        assert kind.field in pb.ListReply.DESCRIPTOR.fields_by_name
        assert NAMES[kind.name] is NAMES[kind.field] is kind


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_empty_item_has_a_cell_in_every_column(kind):
    message = pb.ListReply.DESCRIPTOR.fields_by_name[kind.field].message_type._concrete_class()
    assert all(column.cell(message) for column in kind.columns)


def test_a_block_s_row_says_who_shares_it():
    assert table(BLOCKS, SEALED) == [
        "POOL     ID  STATE   REFS  GEN  HOLDER  HASH          DEPTH  IDLE  MARKS",
        "llama-1  17  sealed     2    3  -       abababababab      4     -  shared,indexed",
    ]


def test_a_cached_block_shows_how_long_it_has_been_idle():
    cached = pb.BlockInfo(state="sealed", hash="ab" * 32, idle_seconds=192)
    assert table(BLOCKS, cached)[1].split()[-2:] == ["3m12s", "cached"]


def test_a_sequence_s_row_shows_the_prefix_of_its_id():
    assert table(SEQUENCES, SEQUENCE) == [
        "POOL     ID            REQUEST  INDEX  WORKER  STATE  PROMPT  CACHED  TOKENS   KV  BLOCKS  AGE",
        "llama-1  0123456789ab  story        0  w0      open       40      32     151  150      11  12s",
    ]


def test_a_finished_sequence_shows_why():
    finished = pb.SequenceInfo(state="finished", finish="length")
    assert "length" in table(SEQUENCES, finished)[1]


def test_a_worker_s_state_is_a_word():
    assert "ready" in table(WORKERS, pb.WorkerInfo(id="w0", state=pb.WORKER_STATE_READY))[1]


def test_a_pool_s_row_shows_shares_in_percent_and_size_in_mebibytes():
    row = table(POOLS, POOL)[1].split()
    assert "40.0%" in row  # used
    assert "25.0%" in row  # prefix hits
    assert row[-2:] == ["100.0", "MiB"]


def test_a_block_is_described_with_its_chain_and_tokens():
    text = "\n".join(views.block_lines(SEALED))
    for part in (
        "17",
        "sealed (shared,indexed)",
        "ab" * 32,
        "cd" * 32,
        "aa" * 16 + ", " + "bb" * 16,
    ):
        assert part in text
    assert views.block_lines(SEALED)[-2:] == ["  " + " ".join(map(str, range(16))), "  16 17 18 19"]


def test_a_block_without_a_chain_has_no_chain_lines():
    lines = views.block_lines(pb.BlockInfo(id=1, state="granted", holder="w0"))
    assert not any(line.startswith(("Hash", "Depth")) for line in lines)


def test_the_block_table_is_drawn_in_rows_of_eight_with_positions_and_marks():
    title, *rows = views.table_lines(SEQUENCE, 16)
    assert "row 2, 11 blocks of 16 slots" in title
    assert rows == [
        "    0 - 127   =90   =91   #92   #93   #94   #95   #96   #97",
        "  128 - 175   #98   ~99  .100",
    ]


def test_a_preempted_sequence_has_no_block_table():
    assert views.table_lines(pb.SequenceInfo(state="preempted"), 16) == ["Block table  none"]


def test_a_pool_s_description_adds_up():
    text = "\n".join(views.pool_lines(POOL))
    for part in (
        "60 free, 10 float, 5 tail, 25 sealed (20 cached, 2 shared)",
        "1600: 160 allocated, 160 reserved ahead, 320 cached, 0 quarantined, 960 free",
        "123 held; 32 slots saved by sharing, 69 allocated without a token (43.1%)",
        "25.0% (50 of 200 prompt tokens, 9 by a copy)",
        "3 for blocks",
    ):
        assert part in text


def test_status_says_health_and_memory():
    text = views.status_lines(
        pb.Status(
            health="SERVING", health_reason="no worker attached", memory_budget_bytes=2**30, pools=[POOL]
        )
    )
    assert text[0].endswith("SERVING (no worker attached)")
    assert text[4].endswith("100.0 MiB KV, 0.0 MiB metadata; at most 1024.0 MiB KV a CPU pool")
    assert [line.split()[:2] for line in text[5:]] == [["Slots", "1600:"], ["Tokens", "123"]]


def test_with_several_pools_each_line_of_memory_names_its_own():
    text = views.status_lines(pb.Status(pools=[POOL, pb.PoolInfo(name="other")]))
    assert [line.split()[1] for line in text[5:9]] == ["llama-1:", "llama-1:", "other:", "other:"]


@pytest.mark.parametrize(("exporter", "weaker"), [("cuda-vmm", False), ("cuda-legacy", True)])
def test_how_gpu_memory_is_shared_is_said_and_that_legacy_promises_less(exporter, weaker):
    pool = pb.PoolInfo(name="llama-2", device="GPU-1", exporter=exporter)
    status = "\n".join(views.status_lines(pb.Status(pools=[POOL, pool])))
    described = "\n".join(views.pool_lines(pool))
    for text in (status, described, table(POOLS, pool)[1]):
        assert exporter in text
    for text in (status, described):
        assert ("lives only as long as the process that allocated it" in text) == weaker
    assert ("llama-2: weaker" in status) == weaker
