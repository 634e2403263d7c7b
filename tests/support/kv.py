"""A worker as the pool's state sees it: numbers its messages, keeps its float, answers nothing by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from kvmanager.layout import Geometry, MetaLayout, PoolSpec
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    FinishReason,
    Fork,
    Grant,
    Granted,
    Numbered,
    Opened,
    OpenOrAdopt,
    Release,
    Reply,
    SequenceId,
    SequenceRef,
    SessionId,
)
from kvmanager.state import KvState

TENANT = bytes(32)


def pool_spec(num_blocks: int = 16, block_size: int = 4, **changes: object) -> PoolSpec:
    values: dict[str, object] = {
        "name": "default",
        "geometry": Geometry(2, 1, 8, block_size, "float32"),
        "num_blocks": num_blocks,
        "model": "tiny",
        "model_fingerprint": bytes(range(32)),
        "device": "cpu",
        "dtype": "float32",
        "max_model_len": 64,
        "max_num_seqs": 4,
        "vocab_size": 100,
        "nonce": b"n" * 16,
    }
    return PoolSpec(**(values | changes))  # type: ignore[arg-type]


def buffer_for(spec: PoolSpec) -> bytearray:
    return bytearray(MetaLayout(spec).total_bytes)


def sequence_id(number: int) -> SequenceId:
    return SequenceId(number.to_bytes(16, "big"))


def open_message(number: int, ids: Sequence[int], max_tokens: int = 8, **changes: object) -> OpenOrAdopt:
    values: dict[str, object] = {
        "sequence": sequence_id(number),
        "group": bytes(16),
        "index": 0,
        "request": b"request",
        "token_ids": list(ids),
        "max_tokens": max_tokens,
        "priority": 0,
        "arrival_ns": number,
        "tenant": TENANT,
        "request_id": f"request-{number}",
    }
    return OpenOrAdopt(**(values | changes))  # type: ignore[arg-type]


def fork_message(number: int, **changes: object) -> Fork:
    values: dict[str, object] = {
        "parent": sequence_id(number),
        "parent_epoch": 1,
        "group": bytes(16),
        "index": 1,
        "request": b"request",
        "max_tokens": 8,
        "priority": 0,
        "arrival_ns": 0,
        "tenant": TENANT,
    }
    return Fork(**(values | changes))  # type: ignore[arg-type]


class Worker:
    """One session of a state."""

    def __init__(self, state: KvState, name: str, now_ns: int = 0) -> None:
        self.state, self.now_ns = state, now_ns
        self.session = SessionId(name.encode().ljust(16, b"."))
        state.attach(
            self.session, worker_id=name, endpoint=f"worker-{name}.sock", pid=1, start_time=2, now_ns=now_ns
        )
        self.number = 0
        self.float: list[BlockRef] = []
        self.unasked: list[tuple[SessionId, Reply]] = []
        self.open: dict[int, list[int]] = {}  # sequence → [epoch, recorded_len, kv_len, blocks]
        self.uncopied: dict[int, int] = {}  # sequence → copies that its next step begins with

    def send(self, message: Numbered) -> Reply:
        """The answer; what else the daemon said is in `unasked`."""
        self.number += 1
        first, *others = self.state.apply(self.session, self.number, message, self.now_ns)
        assert (first.session, first.number) == (self.session, self.number)
        assert all(other.number == 0 for other in others)
        self.unasked = [(other.session, other.reply) for other in others]
        return first.reply

    def grant(self, count: int, starving: bool = False) -> list[int]:
        reply = self.send(Grant(count=count, starving=starving))
        assert isinstance(reply, Granted)
        self.float += reply.blocks
        return [block.id for block in reply.blocks]

    def start(self, number: int, ids: Sequence[int], max_tokens: int = 8, **changes: object) -> Reply:
        reply = self.send(open_message(number, ids, max_tokens, **changes))
        if isinstance(reply, Opened):
            self.open[number] = [reply.epoch, reply.recorded_len, reply.kv_len, len(reply.blocks)]
            self.uncopied[number] = len(reply.copies)
        return reply

    def entry(
        self,
        number: int,
        tokens: Sequence[int] = (),
        *,
        preempted: bool = False,
        finish: FinishReason = FinishReason.NONE,
    ) -> CommitEntry:
        """Everything recorded is computed, and `tokens` are sampled; blocks come from the float."""
        epoch, recorded, kv_len, blocks = self.open[number]
        after = recorded + len(tokens) - 1 if tokens else kv_len
        need = max(0, -(-after // self.state.layout.block_size) - blocks)
        taken, self.float = self.float[:need], self.float[need:]
        self.open[number] = [epoch, recorded + len(tokens), 0 if preempted else after, blocks + need]
        return CommitEntry(
            sequence=sequence_id(number),
            epoch=epoch,
            base_recorded=recorded,
            base_kv=kv_len,
            token_ids=list(tokens),
            kv_len=after,
            blocks=taken,
            preempted=preempted,
            finish=finish,
            copies_done=self.uncopied.pop(number, 0) if after > kv_len else 0,
        )

    def fork(
        self,
        number: int,
        parent: int,
        base: int,
        tokens: Sequence[int],
        max_tokens: int = 8,
        *,
        base_kv: int | None = None,
        parent_epoch: int | None = None,
    ) -> CommitEntry:
        """The first entry of a sequence that has the parent's first `base` tokens and, unless `base_kv` says less, all
        of their slots. With one token it has written nothing: finish it. `parent_epoch` names an ended parent's row."""
        base_kv = base if base_kv is None else base_kv
        epoch, size = parent_epoch or self.open[parent][0], self.state.layout.block_size
        shared = base_kv // size if len(tokens) > 1 else -(-base // size)
        self.open[number] = [1, base, base_kv, shared]
        fork = fork_message(parent, max_tokens=max_tokens, parent_epoch=epoch, arrival_ns=number)
        return replace(self.entry(number, tokens), fork=fork)

    def commit(self, *entries: CommitEntry) -> Acked:
        reply = self.send(Commit(step=1, entries=entries))
        assert isinstance(reply, Acked)
        return reply

    def step(self, number: int, *tokens: int) -> None:
        assert not self.commit(self.entry(number, tokens)).refusals

    def preempt(self, number: int, release: bool = True) -> None:
        assert not self.commit(self.entry(number, preempted=True)).refusals
        if release:
            self.release(number)

    def finish(self, number: int, release: bool = True) -> None:
        assert not self.commit(self.entry(number, finish=FinishReason.LENGTH)).refusals
        if release:
            self.release(number)

    def release(self, number: int, epoch: int | None = None) -> None:
        reply = self.send(Release(rows=[SequenceRef(sequence_id(number), epoch or self.open[number][0])]))
        assert isinstance(reply, Acked)
        assert not reply.refusals

    def give_back(self) -> None:
        blocks, self.float = self.float, []
        assert self.send(Release(blocks=blocks)) == Acked(refusals=[])


MADE: list[KvState] = []


def pool(num_blocks: int = 16, **changes: object) -> tuple[KvState, Worker]:
    """A new pool of blocks of 4 slots, and its worker `a`."""
    spec = pool_spec(num_blocks, 4, **changes)
    state = KvState.create(buffer_for(spec), spec, 0)
    MADE.append(state)
    return state, Worker(state, "a")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Where imported: every pool is clean at the end of its test."""
    MADE.clear()
    yield
    for state in MADE:
        assert state.check_integrity() == []


def ready() -> tuple[KvState, Worker, CommitEntry]:
    """A computed prompt of 5, and the entry of its next decode step."""
    state, worker = pool(16)
    worker.grant(4, starving=True)
    worker.start(1, [1, 2, 3, 4, 5], 6)
    worker.step(1, 6)
    entry = CommitEntry(
        sequence=sequence_id(1), epoch=1, base_recorded=6, base_kv=5, token_ids=[7], kv_len=6, blocks=()
    )
    return state, worker, entry
