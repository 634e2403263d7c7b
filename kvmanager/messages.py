"""What workers and the daemon say to each other, as plain records; `codec` turns them into protobuf and back.

Docs of each message stand in proto/holdfast/v1/kvmanager.proto. Lengths are in tokens. Nothing here imports numpy,
torch or protobuf: the pure policy on both sides (kvmanager.state, compute.scheduler) speaks in these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, NewType

SequenceId = NewType("SequenceId", bytes)  # 16 bytes
SessionId = NewType("SessionId", bytes)  # 16 bytes


class BlockRef(NamedTuple):
    """A block as named on the wire: stale when its generation is no longer the block's."""

    id: int
    generation: int


class CopyOrder(NamedTuple):
    """The first `slots` slots of `source` are to be copied to `destination`, before the step that needs them."""

    source: BlockRef
    destination: BlockRef
    slots: int


class FinishReason(IntEnum):
    """As holdfast.v1.FinishReason; NONE while the sequence runs."""

    NONE = 0
    STOP = 1
    EOS = 2
    LENGTH = 3
    CANCELLED = 4
    ERROR = 5


class WorkerState(IntEnum):
    """As holdfast.v1.WorkerState."""

    UNKNOWN = 0
    WARMING = 1
    COMPILING = 2
    CAPTURING = 3
    READY = 4
    DRAINING = 5
    LOST = 6


class OpenKind(IntEnum):
    """As holdfast.v1.OpenKind."""

    UNKNOWN = 0
    NEW = 1
    ADOPTED = 2
    YOURS = 3
    RESUMED = 4


# ------------------------------------------------------------------------------------------- worker → daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    count: int
    starving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrAdopt:
    sequence: SequenceId
    group: bytes
    index: int
    request: bytes
    token_ids: Sequence[int]
    max_tokens: int
    priority: int
    arrival_ns: int
    tenant: bytes
    bypass_prefix: bool = False
    request_id: str = ""
    prompt_len: int = 0
    no_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    parent: SequenceId
    parent_epoch: int
    group: bytes
    index: int
    request: bytes
    max_tokens: int
    priority: int
    arrival_ns: int
    tenant: bytes
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry:
    sequence: SequenceId
    epoch: int
    base_recorded: int
    base_kv: int
    token_ids: Sequence[int] = ()
    kv_len: int
    blocks: Sequence[BlockRef] = ()
    preempted: bool = False
    finish: FinishReason = FinishReason.NONE
    stop_token_id: int = 0
    copies_done: int = 0
    fork: Fork | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    step: int
    entries: Sequence[CommitEntry]


class SequenceRef(NamedTuple):
    sequence: SequenceId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    rows: Sequence[SequenceRef] = ()
    blocks: Sequence[BlockRef] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    sequence: SequenceId
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Not numbered; about the step thread."""

    state: WorkerState
    step: int = 0
    bound_ms: int = 1500
    busy: bool = False
    running: int = 0
    waiting: int = 0
    float_blocks: int = 0
    tokens_per_second: float = 0.0
    steps_waited: int = 0
    wait_p99_ms: float = 0.0
    preemptions: int = 0
    replayed: int = 0
    reprefilled: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


Numbered = Grant | OpenOrAdopt | Commit | Release | Fenced

# ------------------------------------------------------------------------------------------- daemon → worker


class Refusal(NamedTuple):
    sequence: SequenceId
    epoch: int
    code: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    refusals: Sequence[Refusal] = ()
    granted: Sequence[BlockRef] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    blocks: Sequence[BlockRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    sequence: SequenceId
    epoch: int
    kind: OpenKind
    recorded_len: int
    kv_len: int
    cached_len: int
    blocks: Sequence[BlockRef]
    token_ids: Sequence[int] = ()
    lost_len: int = 0
    alone: bool = False
    copies: Sequence[CopyOrder] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    sequence: SequenceId
    needed_blocks: int
    available_blocks: int
    for_prefix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    sequence: SequenceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    sequence: SequenceId
    code: int
    message: str
    details: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    sequence: SequenceId
    epoch: int


class Holding(NamedTuple):
    """One record of a session: open, preempted, or finished and not forgotten."""

    sequence: SequenceId
    epoch: int
    recorded_len: int
    finish: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """After a re-attach: what the daemon thinks the session holds. `blocks` are its float."""

    sequences: Sequence[Holding]
    blocks: Sequence[BlockRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    pass


Reply = Acked | Granted | Opened | Wait | Refused | Revoke | Retry | Holdings | Drain | Handover | Resume
