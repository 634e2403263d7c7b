"""One pool's state: calls in, replies out, every change in the metadata buffer before a reply exists.

`KvState` is pure: it reads no clock and draws no random number, and the one thing it writes is the buffer it was given.
Each change is one operation of the `Store`: seen whole or not at all, also by a daemon that starts after a kill. Calls
raise before they change anything; a failed assert means that memory and buffer may differ, and the process must end
(the buffer still holds the last whole operation).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from kvmanager import admission, commits, endings, following, grants, salvage, usage, views
from kvmanager.compare import compare
from kvmanager.errors import Conflict
from kvmanager.integrity import Finding, check_buffer
from kvmanager.layout import Buffer, CorruptMetadata, MetaLayout, PoolSpec
from kvmanager.messages import (
    Acked,
    Commit,
    Fenced,
    Grant,
    Holdings,
    Numbered,
    OpenOrAdopt,
    Release,
    Reply,
    SequenceId,
    SessionId,
)
from kvmanager.parts import Outgoing, Parts
from kvmanager.prefix import Hash, sha256
from kvmanager.records import BOOT_EPOCH_AT
from kvmanager.recover import load
from kvmanager.salvage import Carried
from kvmanager.sessions import Session, SessionState
from kvmanager.store import WORD, Hook, Store

RECORD_TTL_NS = 60 * 10**9

HANDLERS: dict[type[Numbered], Callable[[Parts, Session, Any, int], Reply]] = {
    Grant: grants.grant,
    OpenOrAdopt: admission.open_sequence,
    Commit: commits.commit,
    Release: commits.release,
    Fenced: commits.fenced,
}


class KvState:
    """The policy and the metadata of one pool. Made by `create` or `recover`."""

    def __init__(self, parts: Parts, boot_epoch: int, now_ns: int) -> None:
        self._parts = parts
        self._outbox: list[Outgoing] = []
        self._now_ns = now_ns
        self.boot_epoch = boot_epoch

    @classmethod
    def create(
        cls, buffer: Buffer, spec: PoolSpec, now_ns: int, *, digest: Hash = sha256, hook: Hook | None = None
    ) -> Self:
        """A new pool in a zeroed buffer of at least MetaLayout(spec).total_bytes bytes."""
        layout = MetaLayout(spec)
        store = Store(buffer, layout, hook)
        assert len(store.raw) >= layout.total_bytes, f"{len(store.raw)} bytes of {layout.total_bytes}"
        parts = Parts(layout, store, digest)
        store.put(BOOT_EPOCH_AT, WORD.pack(1))
        store.put(0, layout.header())
        store.commit()
        return cls(parts, 1, now_ns)

    @classmethod
    def recover(cls, buffer: Buffer, now_ns: int, *, digest: Hash = sha256, hook: Hook | None = None) -> Self:
        """Go on with a former daemon's metadata. CorruptMetadata names what is wrong with it.

        Nothing is lost by it: sealed blocks stay cached, living sessions go on with their next message. Whose process
        is gone, or does not come back, is `dead` or `lose`'s.
        """
        layout = MetaLayout.from_header(buffer)
        store = Store(buffer, layout, hook)
        store.replay()
        findings = check_buffer(buffer, digest)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise CorruptMetadata(f"{findings[0].subject}: {findings[0].message}{more}")
        parts = load(buffer, layout, store, digest)
        boot_epoch = int(layout.view(buffer).header["boot_epoch"]) + 1
        store.put(BOOT_EPOCH_AT, WORD.pack(boot_epoch))
        last_use = max(parts.blocks.last_use)
        store.commit()
        return cls(parts, boot_epoch, max(now_ns, last_use))

    def carry(self, carried: Iterable[Carried]) -> None:
        """Keep another pool's requests; this one is new and as large. One operation each."""
        salvage.store(self._parts, carried)

    def close(self) -> None:
        """Let go of the buffer, so that its mapping can be closed. No call follows."""
        self._parts.store.raw.release()

    # ----------------------------------------------------------------------------------- workers

    def attach(
        self, session: SessionId, *, worker_id: str, endpoint: str, pid: int, start_time: int, now_ns: int
    ) -> SessionId:
        """Know a new session; the caller drew its 16 random bytes. Raises Invalid or ResourceExhausted."""
        self._parts.sessions.attach(
            session,
            worker_id=worker_id,
            endpoint=endpoint,
            pid=pid,
            start_time=start_time,
            now_ns=self._tick(now_ns),
        )
        self._parts.store.commit()
        return session

    def apply(self, session: SessionId, number: int, message: Numbered, now_ns: int) -> list[Outgoing]:
        """The answer to one numbered message first, then what it makes the daemon say to any worker.

        Raises Fenced for an unknown or lost session, Conflict for a number that leaves a gap. A number already applied
        is acknowledged again, without effect.
        """
        found = self._parts.sessions.alive(session)
        if number <= found.number:
            return [Outgoing(session, number, Acked())]
        if number != found.number + 1:
            raise Conflict(f"message {number} follows {found.number}", expected=found.number + 1)
        reply = HANDLERS[type(message)](self._parts, found, message, self._tick(now_ns))
        found.number = number
        self._parts.sessions.put_number(found)
        outgoing = [Outgoing(session, number, reply), *self._unasked()]
        self._parts.store.commit()
        return outgoing

    def number_of(self, session: SessionId) -> int:
        """Of the session's last message that was applied. Fenced if it is unknown."""
        return self._parts.sessions.known(session).number

    def holdings(self, session: SessionId) -> Holdings:
        """What a living session holds, as of its last message. Fenced unless it is known and not lost."""
        return views.holdings(self._parts, self._parts.sessions.alive(session))

    def lose(self, session: SessionId, now_ns: int) -> list[SequenceId]:
        """First sign of the worker's end: fence it. The sequences that wait for another worker now; then see `outbox`.
        Fenced if it is unknown."""
        found = self._parts.sessions.known(session)
        if found.state == SessionState.LOST:
            return []
        ended = endings.lose(self._parts, found, self._tick(now_ns))
        self._finish_operation()
        return ended

    def dead(self, session: SessionId) -> int:
        """Proof that the worker's process is gone: blocks freed from quarantine; then see `outbox`.

        A session that was not lost before is lost by this. Raises Fenced if it is unknown.
        """
        found = self._parts.sessions.known(session)
        if found.state == SessionState.ALIVE:
            endings.lose(self._parts, found, self._now_ns)
        freed = endings.bury(self._parts, found)
        self._finish_operation()
        return freed

    def outbox(self) -> list[Outgoing]:
        """What `lose`, `dead` and `expire` have to tell other workers; each message once."""
        messages, self._outbox = self._outbox, []
        return messages

    # ----------------------------------------------------------------------------------- housekeeping

    def expire(self, now_ns: int, ttl_ns: int = RECORD_TTL_NS, orphan_ttl_ns: int = RECORD_TTL_NS) -> int:
        """Forget records that finished longer than `ttl_ns` ago; how many. Orphans end after `orphan_ttl_ns`. Then see
        `outbox`: waits may be over, and blocks have come back."""
        now = self._tick(now_ns)
        endings.abandon(self._parts, now - orphan_ttl_ns, now)
        count = endings.expire(self._parts, now - ttl_ns)
        self._finish_operation()
        return count

    def evict(self, count: int) -> int:
        """Drop the least recently used cached blocks, at most `count`; how many."""
        blocks = self._parts.blocks
        count = min(count, blocks.cached.length)
        for _ in range(count):
            blocks.evict()
        self._parts.store.commit()
        return count

    def flush(self) -> int:
        """Drop every cached block; how many."""
        return self.evict(self._parts.blocks.num_blocks)

    def check_integrity(self) -> list[Finding]:
        """What is wrong with the metadata, or differs between it and what is derived from it. Empty: all is well."""
        parts = self._parts
        raw, digest = parts.store.raw, parts.prefix.keys.digest
        return check_buffer(raw, digest) or compare(parts, load(raw, parts.layout, parts.store, digest))

    # ----------------------------------------------------------------------------------- views

    @property
    def spec(self) -> PoolSpec:
        return self._parts.spec

    @property
    def layout(self) -> MetaLayout:
        return self._parts.layout

    @property
    def evictions(self) -> int:
        return self._parts.blocks.evictions

    @property
    def preemptions(self) -> int:
        return self._parts.preemptions

    @property
    def adoptions(self) -> int:
        return self._parts.adoptions

    @property
    def reprefilled(self) -> int:
        return self._parts.reprefilled

    @property
    def orphans(self) -> int:
        """Live sequences without a worker."""
        return len(self._parts.sequences.orphans)

    @property
    def live_sequences(self) -> int:
        """Open and preempted ones, and orphans."""
        return len(self._parts.sequences.by_id) - len(self._parts.sequences.finished)

    @property
    def tokens_held(self) -> int:
        """Committed slots of live sequences; a shared block counts for each."""
        table = self._parts.sequences
        return sum(s.kv_len for live in (table.open, table.orphans) for s in live.values())

    def counts(self) -> views.BlockCounts:
        return views.counts(self._parts)

    @property
    def prefix(self) -> usage.PrefixUse:
        """What look-ups gave since this daemon started."""
        return usage.prefix(self._parts)

    def memory(self) -> usage.MemoryUse:
        """What the pool's token slots are used for."""
        return usage.memory(self._parts)

    def sessions(self) -> list[views.SessionInfo]:
        """Sessions alive, and lost ones that are not proven dead."""
        return views.sessions(self._parts)

    def blocks(
        self, state: str | None = None, *, start: int = 0, now_ns: int | None = None
    ) -> Iterator[views.BlockInfo]:
        """By id from `start` on; only this state, or all but free."""
        return views.blocks(self._parts, self._tick(now_ns or 0), state, start)

    def describe_block(self, block: int, now_ns: int | None = None) -> views.BlockInfo:
        """Raises NotFound."""
        return views.describe_block(self._parts, block, self._tick(now_ns or 0))

    def sequences(self, now_ns: int | None = None) -> list[views.SequenceInfo]:
        """All records, oldest first."""
        return views.sequences(self._parts, self._tick(now_ns or 0))

    def describe_sequence(self, prefix: str, now_ns: int | None = None) -> views.SequenceInfo:
        """By a unique hexadecimal prefix of its id. Raises NotFound or Conflict."""
        return views.describe_sequence(self._parts, prefix, self._tick(now_ns or 0))

    def find_request(self, request_id: str, tenant: bytes) -> list[views.FoundView]:
        """The records of one request of one tenant, of its latest group."""
        return views.find_request(self._parts, request_id, tenant)

    def read_record(self, sequence: SequenceId, from_: int = 0) -> views.RecordView:
        """The tokens recorded from position `from_` on. Raises NotFound."""
        return views.read_record(self._parts, sequence, from_)

    # ----------------------------------------------------------------------------------- own

    def _tick(self, now_ns: int) -> int:
        """Time as this state sees it: never backwards, so that the LRU order is the order of `last_use`."""
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns

    def _unasked(self) -> Iterator[Outgoing]:
        """What a change makes the daemon say to any worker."""
        yield from grants.serve_starving(self._parts)
        yield from following.released(self._parts, self._now_ns)

    def _finish_operation(self) -> None:
        self._outbox += self._unasked()
        self._parts.store.commit()
