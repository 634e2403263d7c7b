"""Beam searches on the daemon's policy alone: each step forks, appends to and closes sequences of a real `KvState`.

A group is one request: its prompt, then `width` beams for as many steps as the trace says. Which beam descends from
which is data, recorded from the shipped model (`beam_parents`); tokens are drawn at random, no two children of a beam
the same. A beam's first child goes on in its place; every other one is a fork, whose begun tail is a block of its own;
a beam without a child is closed. That is one commit and one release a step, as a worker's would be.
"""

import json
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.engine_local import LocalLink, pool_spec
from benchmarks.paging import MOST, Life
from kvmanager.layout import Geometry
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
)

R = TypeVar("R", bound=Reply)

DATA = Path(__file__).resolve().parent / "data/beam-parents.json"
VOCAB = 1 << 16
AT_ONCE = 32  # groups; memory saved does not depend on it
TENANT = bytes(32)
ROOM = 1024  # beams of all groups that may have records at once


@dataclass(slots=True)
class Beam:
    """One sequence, as its worker knows it: all tokens but the last have their KV."""

    id: SequenceId
    tokens: list[int]
    kv_len: int = 0
    blocks: int = 0


@dataclass(slots=True)
class Group:
    life: Life
    parents: Iterator[Sequence[int]]
    beams: list[Beam] = field(default_factory=list)
    drawn: int = 0  # tokens of each beam

    @property
    def done(self) -> bool:
        return self.drawn == self.life.output


def recorded(width: int) -> list[list[list[int]]]:
    """Parents of each step of each recorded search."""
    searches = json.loads(DATA.read_text("utf8"))["parents"][str(width)]
    return [[[int(digit) for digit in word] for word in search.split()] for search in searches]


def descent(search: Sequence[Sequence[int]], width: int) -> Iterator[Sequence[int]]:
    """All from the prompt, then as recorded; a longer search begins the record again."""
    yield [0] * width
    while True:
        yield from search


class Beams:
    """A pool, a worker's session and the groups that run on it."""

    def __init__(self, width: int, block_size: int, seed: int = 3) -> None:
        num_blocks = 2 * AT_ONCE * width * 2 * MOST // block_size
        spec = pool_spec(
            Geometry(1, 1, 2, block_size, "bfloat16"), num_blocks, max_model_len=2 * MOST, max_num_seqs=ROOM,
            vocab_size=VOCAB,
        )  # fmt: skip
        self.link, self.width, self.block_size = LocalLink(spec), width, block_size
        self.state = self.link.state
        self.rng, self.searches = random.Random(seed), recorded(width)
        self.float: deque[BlockRef] = deque()
        self.running: list[Group] = []
        self.named = 0

    def run(self, lives: Sequence[Life]) -> Iterator[list[list[int]]]:
        """After each step: the tokens of every beam that have their KV, as the worker knows them."""
        waiting = deque(enumerate(lives))
        while waiting or self.running:
            while waiting and len(self.running) < AT_ONCE:
                self.open(*waiting.popleft())
            self.step()
            yield [beam.tokens[: beam.kv_len] for group in self.running for beam in group.beams]
            self.end()

    def open(self, number: int, life: Life) -> None:
        prompt = [self.rng.randrange(VOCAB) for _ in range(life.prompt)]
        lead = Beam(self.name(), prompt)
        self.ask(
            OpenOrAdopt(
                sequence=lead.id, group=bytes(16), index=0, request=b"", token_ids=prompt, max_tokens=life.output,
                priority=0, arrival_ns=number, tenant=TENANT,
            ),
            Opened,
        )  # fmt: skip
        search = self.searches[number % len(self.searches)]
        self.running.append(Group(life, descent(search, self.width), [lead]))

    def step(self) -> None:
        entries: list[CommitEntry] = []
        closed: list[SequenceRef] = []
        for group in self.running:
            entries += self.advance(group, closed)
        self.commit(entries)
        self.ask(Release(rows=closed), Acked)

    def advance(self, group: Group, closed: list[SequenceRef]) -> list[CommitEntry]:
        """One token for each beam: the entries that say so. Notes the rows that end."""
        children, entries, beams = Counter(next(group.parents)), [], []
        for place, beam in enumerate(group.beams):
            if place not in children:
                entries.append(self.close(beam))
                closed.append(SequenceRef(beam.id, 1))
                continue
            first, *others = self.rng.sample(range(VOCAB), children[place])
            forks = [self.forked(beam, token) for token in others]
            entries.append(self.append(beam, first))
            entries += [self.fork(beam, fork, group.life) for fork in forks]
            beams += [beam, *forks]
        group.beams, group.drawn = beams, group.drawn + 1
        return entries

    def forked(self, parent: Beam, token: int) -> Beam:
        """A beam that goes on from where the parent is now."""
        length = len(parent.tokens)
        return Beam(self.name(), [*parent.tokens, token], length, length // self.block_size)

    def append(self, beam: Beam, token: int) -> CommitEntry:
        """The KV of all its tokens is computed, and another token drawn."""
        base_kv, recorded = beam.kv_len, len(beam.tokens)
        beam.kv_len = recorded
        beam.tokens.append(token)
        return CommitEntry(
            sequence=beam.id, epoch=1, base_recorded=recorded, base_kv=base_kv, token_ids=[token], kv_len=recorded,
            blocks=self.take(beam),
        )  # fmt: skip

    def fork(self, parent: Beam, beam: Beam, life: Life) -> CommitEntry:
        length = beam.kv_len
        return CommitEntry(
            sequence=beam.id, epoch=1, base_recorded=length, base_kv=length, token_ids=beam.tokens[-1:],
            kv_len=length, blocks=self.take(beam),
            fork=Fork(
                parent=parent.id, parent_epoch=1, group=bytes(16), index=1, request=b"", max_tokens=life.output,
                priority=0, arrival_ns=0, tenant=TENANT,
            ),
        )  # fmt: skip

    def close(self, beam: Beam) -> CommitEntry:
        return CommitEntry(
            sequence=beam.id, epoch=1, base_recorded=len(beam.tokens), base_kv=beam.kv_len, kv_len=beam.kv_len,
            finish=FinishReason.LENGTH,
        )  # fmt: skip

    def end(self) -> None:
        """Closes the groups that have all their tokens."""
        done = [beam for group in self.running if group.done for beam in group.beams]
        self.running = [group for group in self.running if not group.done]
        if done:
            self.commit([self.close(beam) for beam in done])
            self.ask(Release(rows=[SequenceRef(beam.id, 1) for beam in done]), Acked)

    def take(self, beam: Beam) -> list[BlockRef]:
        """Blocks that its KV lacks, from the float."""
        lacking = -(-beam.kv_len // self.block_size) - beam.blocks
        if len(self.float) < lacking:
            self.float.extend(self.ask(Grant(count=4 * AT_ONCE * self.width), Granted).blocks)
        beam.blocks += lacking
        return [self.float.popleft() for _ in range(lacking)]

    def name(self) -> SequenceId:
        self.named += 1
        return SequenceId(self.named.to_bytes(16, "big"))

    def commit(self, entries: Sequence[CommitEntry]) -> None:
        acked = self.ask(Commit(step=1, entries=entries), Acked)
        assert not acked.refusals, acked.refusals

    def ask(self, message: Numbered, kind: type[R]) -> R:
        self.link.send(message)
        ((_, reply),) = self.link.receive()
        assert isinstance(reply, kind), reply
        return reply
