"""Worker sessions: one attachment's lifetime each. Records only; when one is lost or dead is the daemon's to know."""

import struct
from dataclasses import dataclass
from enum import IntEnum

from kvmanager.errors import Fenced, Invalid, ResourceExhausted
from kvmanager.layout import MetaLayout, within
from kvmanager.messages import SessionId
from kvmanager.records import MAX_SESSIONS, SESSION
from kvmanager.store import Store

RECORD = struct.Struct("<IIQQQQ16s32s128s")
NUMBER = struct.Struct("<Q")
NUMBER_AT = 8


class SessionState(IntEnum):
    UNUSED = 0
    ALIVE = 1
    LOST = 2  # fenced; what it might still write is in quarantine


@dataclass(slots=True, kw_only=True)
class Session:
    """A session's record, and what is derived: its float's size and the blocks it starves for."""

    slot: int
    id: SessionId
    worker_id: str
    endpoint: str
    pid: int
    start_time: int
    attached_ns: int
    state: SessionState = SessionState.ALIVE
    number: int = 0
    float_blocks: int = 0
    want: int = 0

    @property
    def holder(self) -> int:
        """How block records name it."""
        return self.slot + 1


class SessionTable:
    """All sessions of a pool that are alive, or lost and not yet proven dead."""

    def __init__(self, layout: MetaLayout, store: Store) -> None:
        self._store, self._at = store, layout.sessions_at
        self.by_id: dict[SessionId, Session] = {}
        self.slots: list[Session | None] = [None] * MAX_SESSIONS

    def alive(self, session: SessionId) -> Session:
        """Fenced unless the session is known and not lost."""
        found = self.by_id.get(session)
        if found is None or found.state != SessionState.ALIVE:
            raise Fenced("the session is unknown or lost")
        return found

    def known(self, session: SessionId) -> Session:
        """Fenced unless the session is alive, or lost and not yet proven dead."""
        found = self.by_id.get(session)
        if found is None:
            raise Fenced("the session is unknown")
        return found

    def attach(
        self, session: SessionId, *, worker_id: str, endpoint: str, pid: int, start_time: int, now_ns: int
    ) -> Session:
        """A new session. Invalid for a field out of bounds, ResourceExhausted when all records are taken."""
        within("session bytes", len(session), 16, 16)
        within("worker_id bytes", len(worker_id.encode()), 1, 32)
        within("endpoint bytes", len(endpoint.encode()), 0, 128)
        if session in self.by_id:
            raise Invalid("the session exists already", field="session")
        slot = next((i for i, used in enumerate(self.slots) if used is None), None)
        if slot is None:
            raise ResourceExhausted(f"all {MAX_SESSIONS} session records are taken", sessions=MAX_SESSIONS)
        new = Session(
            slot=slot,
            id=session,
            worker_id=worker_id,
            endpoint=endpoint,
            pid=pid,
            start_time=start_time,
            attached_ns=now_ns,
        )
        self.adopt(new)
        self.put(new)
        return new

    def adopt(self, session: Session) -> None:
        """Know a session without storing it."""
        self.slots[session.slot] = session
        self.by_id[session.id] = session

    def drop(self, session: Session) -> None:
        """Forget a dead session."""
        self.slots[session.slot] = None
        del self.by_id[session.id]
        self._store.put(self._at + session.slot * SESSION.itemsize, bytes(SESSION.itemsize))

    def put(self, s: Session) -> None:
        record = RECORD.pack(
            s.state,
            0,
            s.number,
            s.pid,
            s.start_time,
            s.attached_ns,
            s.id,
            s.worker_id.encode(),
            s.endpoint.encode(),
        )
        self._store.put(self._at + s.slot * SESSION.itemsize, record)

    def put_number(self, s: Session) -> None:
        self._store.put(self._at + s.slot * SESSION.itemsize + NUMBER_AT, NUMBER.pack(s.number))
