from holdfast.v1 import generate_pb2 as _generate_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID: _ClassVar[ErrorCode]
    ERROR_CODE_NOT_FOUND: _ClassVar[ErrorCode]
    ERROR_CODE_CONFLICT: _ClassVar[ErrorCode]
    ERROR_CODE_FENCED: _ClassVar[ErrorCode]
    ERROR_CODE_RESOURCE_EXHAUSTED: _ClassVar[ErrorCode]
    ERROR_CODE_POOL_TOO_SMALL: _ClassVar[ErrorCode]
    ERROR_CODE_MISMATCH: _ClassVar[ErrorCode]
    ERROR_CODE_NO_MEMORY: _ClassVar[ErrorCode]
    ERROR_CODE_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
    ERROR_CODE_UNIMPLEMENTED: _ClassVar[ErrorCode]

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_WARMING: _ClassVar[WorkerState]
    WORKER_STATE_COMPILING: _ClassVar[WorkerState]
    WORKER_STATE_CAPTURING: _ClassVar[WorkerState]
    WORKER_STATE_READY: _ClassVar[WorkerState]
    WORKER_STATE_DRAINING: _ClassVar[WorkerState]
    WORKER_STATE_LOST: _ClassVar[WorkerState]

class OpenKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPEN_KIND_UNSPECIFIED: _ClassVar[OpenKind]
    OPEN_KIND_NEW: _ClassVar[OpenKind]
    OPEN_KIND_ADOPTED: _ClassVar[OpenKind]
    OPEN_KIND_YOURS: _ClassVar[OpenKind]
    OPEN_KIND_RESUMED: _ClassVar[OpenKind]

class ResourceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESOURCE_KIND_UNSPECIFIED: _ClassVar[ResourceKind]
    RESOURCE_KIND_BLOCK: _ClassVar[ResourceKind]
    RESOURCE_KIND_SEQUENCE: _ClassVar[ResourceKind]
    RESOURCE_KIND_WORKER: _ClassVar[ResourceKind]
    RESOURCE_KIND_POOL: _ClassVar[ResourceKind]
    RESOURCE_KIND_TIER: _ClassVar[ResourceKind]
    RESOURCE_KIND_EVENT: _ClassVar[ResourceKind]
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID: ErrorCode
ERROR_CODE_NOT_FOUND: ErrorCode
ERROR_CODE_CONFLICT: ErrorCode
ERROR_CODE_FENCED: ErrorCode
ERROR_CODE_RESOURCE_EXHAUSTED: ErrorCode
ERROR_CODE_POOL_TOO_SMALL: ErrorCode
ERROR_CODE_MISMATCH: ErrorCode
ERROR_CODE_NO_MEMORY: ErrorCode
ERROR_CODE_UNAVAILABLE: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode
ERROR_CODE_UNIMPLEMENTED: ErrorCode
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_WARMING: WorkerState
WORKER_STATE_COMPILING: WorkerState
WORKER_STATE_CAPTURING: WorkerState
WORKER_STATE_READY: WorkerState
WORKER_STATE_DRAINING: WorkerState
WORKER_STATE_LOST: WorkerState
OPEN_KIND_UNSPECIFIED: OpenKind
OPEN_KIND_NEW: OpenKind
OPEN_KIND_ADOPTED: OpenKind
OPEN_KIND_YOURS: OpenKind
OPEN_KIND_RESUMED: OpenKind
RESOURCE_KIND_UNSPECIFIED: ResourceKind
RESOURCE_KIND_BLOCK: ResourceKind
RESOURCE_KIND_SEQUENCE: ResourceKind
RESOURCE_KIND_WORKER: ResourceKind
RESOURCE_KIND_POOL: ResourceKind
RESOURCE_KIND_TIER: ResourceKind
RESOURCE_KIND_EVENT: ResourceKind

class Error(_message.Message):
    __slots__ = ("code", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Geometry(_message.Message):
    __slots__ = ("num_layers", "num_kv_heads", "head_dim", "block_size", "dtype", "layout_version")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str
    layout_version: int
    def __init__(self, num_layers: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., block_size: _Optional[int] = ..., dtype: _Optional[str] = ..., layout_version: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "endpoint", "geometry", "model_fingerprint", "model", "device", "max_model_len", "max_num_seqs", "vocab_size", "dtype", "peak_bytes", "resume_session")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESUME_SESSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    endpoint: str
    geometry: Geometry
    model_fingerprint: bytes
    model: str
    device: str
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    dtype: str
    peak_bytes: int
    resume_session: bytes
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ..., model_fingerprint: _Optional[bytes] = ..., model: _Optional[str] = ..., device: _Optional[str] = ..., max_model_len: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., peak_bytes: _Optional[int] = ..., resume_session: _Optional[bytes] = ...) -> None: ...

class AttachReply(_message.Message):
    __slots__ = ("attached", "error")
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    attached: Attached
    error: Error
    def __init__(self, attached: _Optional[_Union[Attached, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("session", "boot_epoch", "pool", "num_blocks", "pool_bytes", "metadata_bytes", "nonce", "exporter", "allocation_bytes", "number")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPORTER_FIELD_NUMBER: _ClassVar[int]
    ALLOCATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    boot_epoch: int
    pool: str
    num_blocks: int
    pool_bytes: int
    metadata_bytes: int
    nonce: bytes
    exporter: str
    allocation_bytes: int
    number: int
    def __init__(self, session: _Optional[bytes] = ..., boot_epoch: _Optional[int] = ..., pool: _Optional[str] = ..., num_blocks: _Optional[int] = ..., pool_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., nonce: _Optional[bytes] = ..., exporter: _Optional[str] = ..., allocation_bytes: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class DaemonRequest(_message.Message):
    __slots__ = ("session", "boot_epoch", "number", "grant", "open_or_adopt", "commit", "release", "fenced", "holdings", "heartbeat", "hello", "snapshot", "read_record", "find_request", "status", "list", "describe", "fsck", "flush", "evict", "pin", "unpin", "drain", "undrain", "delete_pool")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    OPEN_OR_ADOPT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    READ_RECORD_FIELD_NUMBER: _ClassVar[int]
    FIND_REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    FSCK_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    UNPIN_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    UNDRAIN_FIELD_NUMBER: _ClassVar[int]
    DELETE_POOL_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    boot_epoch: int
    number: int
    grant: Grant
    open_or_adopt: OpenOrAdopt
    commit: Commit
    release: Release
    fenced: Fenced
    holdings: HoldingsRequest
    heartbeat: Heartbeat
    hello: Hello
    snapshot: SnapshotRequest
    read_record: ReadRecord
    find_request: FindRequest
    status: StatusRequest
    list: ListRequest
    describe: DescribeRequest
    fsck: FsckRequest
    flush: FlushRequest
    evict: EvictRequest
    pin: PinRequest
    unpin: UnpinRequest
    drain: DrainRequest
    undrain: UndrainRequest
    delete_pool: DeletePoolRequest
    def __init__(self, session: _Optional[bytes] = ..., boot_epoch: _Optional[int] = ..., number: _Optional[int] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., open_or_adopt: _Optional[_Union[OpenOrAdopt, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., fenced: _Optional[_Union[Fenced, _Mapping]] = ..., holdings: _Optional[_Union[HoldingsRequest, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotRequest, _Mapping]] = ..., read_record: _Optional[_Union[ReadRecord, _Mapping]] = ..., find_request: _Optional[_Union[FindRequest, _Mapping]] = ..., status: _Optional[_Union[StatusRequest, _Mapping]] = ..., list: _Optional[_Union[ListRequest, _Mapping]] = ..., describe: _Optional[_Union[DescribeRequest, _Mapping]] = ..., fsck: _Optional[_Union[FsckRequest, _Mapping]] = ..., flush: _Optional[_Union[FlushRequest, _Mapping]] = ..., evict: _Optional[_Union[EvictRequest, _Mapping]] = ..., pin: _Optional[_Union[PinRequest, _Mapping]] = ..., unpin: _Optional[_Union[UnpinRequest, _Mapping]] = ..., drain: _Optional[_Union[DrainRequest, _Mapping]] = ..., undrain: _Optional[_Union[UndrainRequest, _Mapping]] = ..., delete_pool: _Optional[_Union[DeletePoolRequest, _Mapping]] = ...) -> None: ...

class DaemonReply(_message.Message):
    __slots__ = ("boot_epoch", "number", "error", "acked", "granted", "opened", "wait", "refused", "revoke", "drain", "handover", "holdings", "resume", "snapshot", "record", "found_request", "retry", "status", "list", "describe", "fsck", "flush", "evict", "pin", "unpin", "drained", "undrained", "deleted_pool")
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    FOUND_REQUEST_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    FSCK_FIELD_NUMBER: _ClassVar[int]
    FLUSH_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    UNPIN_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    UNDRAINED_FIELD_NUMBER: _ClassVar[int]
    DELETED_POOL_FIELD_NUMBER: _ClassVar[int]
    boot_epoch: int
    number: int
    error: Error
    acked: Acked
    granted: Granted
    opened: Opened
    wait: Wait
    refused: Refused
    revoke: Revoke
    drain: Drain
    handover: Handover
    holdings: Holdings
    resume: Resume
    snapshot: Snapshot
    record: Record
    found_request: FoundRequest
    retry: Retry
    status: Status
    list: ListReply
    describe: DescribeReply
    fsck: FsckReply
    flush: FlushReply
    evict: EvictReply
    pin: PinReply
    unpin: UnpinReply
    drained: DrainReply
    undrained: UndrainReply
    deleted_pool: DeletePoolReply
    def __init__(self, boot_epoch: _Optional[int] = ..., number: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., acked: _Optional[_Union[Acked, _Mapping]] = ..., granted: _Optional[_Union[Granted, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., handover: _Optional[_Union[Handover, _Mapping]] = ..., holdings: _Optional[_Union[Holdings, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., record: _Optional[_Union[Record, _Mapping]] = ..., found_request: _Optional[_Union[FoundRequest, _Mapping]] = ..., retry: _Optional[_Union[Retry, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., list: _Optional[_Union[ListReply, _Mapping]] = ..., describe: _Optional[_Union[DescribeReply, _Mapping]] = ..., fsck: _Optional[_Union[FsckReply, _Mapping]] = ..., flush: _Optional[_Union[FlushReply, _Mapping]] = ..., evict: _Optional[_Union[EvictReply, _Mapping]] = ..., pin: _Optional[_Union[PinReply, _Mapping]] = ..., unpin: _Optional[_Union[UnpinReply, _Mapping]] = ..., drained: _Optional[_Union[DrainReply, _Mapping]] = ..., undrained: _Optional[_Union[UndrainReply, _Mapping]] = ..., deleted_pool: _Optional[_Union[DeletePoolReply, _Mapping]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("count", "starving")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STARVING_FIELD_NUMBER: _ClassVar[int]
    count: int
    starving: bool
    def __init__(self, count: _Optional[int] = ..., starving: _Optional[bool] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenOrAdopt(_message.Message):
    __slots__ = ("sequence", "group", "index", "request", "token_ids", "max_tokens", "priority", "arrival_ns", "tenant", "bypass_prefix", "request_id", "prompt_len", "no_cache")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_NS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BYPASS_PREFIX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    NO_CACHE_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    group: bytes
    index: int
    request: bytes
    token_ids: bytes
    max_tokens: int
    priority: int
    arrival_ns: int
    tenant: bytes
    bypass_prefix: bool
    request_id: str
    prompt_len: int
    no_cache: bool
    def __init__(self, sequence: _Optional[bytes] = ..., group: _Optional[bytes] = ..., index: _Optional[int] = ..., request: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., arrival_ns: _Optional[int] = ..., tenant: _Optional[bytes] = ..., bypass_prefix: _Optional[bool] = ..., request_id: _Optional[str] = ..., prompt_len: _Optional[int] = ..., no_cache: _Optional[bool] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("step", "entries")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    step: int
    entries: _containers.RepeatedCompositeFieldContainer[CommitEntry]
    def __init__(self, step: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[CommitEntry, _Mapping]]] = ...) -> None: ...

class CommitEntry(_message.Message):
    __slots__ = ("sequence", "epoch", "base_recorded", "base_kv", "token_ids", "kv_len", "blocks", "preempted", "finish", "stop_token_id", "copies_done", "fork")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BASE_RECORDED_FIELD_NUMBER: _ClassVar[int]
    BASE_KV_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    KV_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    COPIES_DONE_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    base_recorded: int
    base_kv: int
    token_ids: bytes
    kv_len: int
    blocks: bytes
    preempted: bool
    finish: _generate_pb2.FinishReason
    stop_token_id: int
    copies_done: int
    fork: Fork
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., base_recorded: _Optional[int] = ..., base_kv: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., kv_len: _Optional[int] = ..., blocks: _Optional[bytes] = ..., preempted: _Optional[bool] = ..., finish: _Optional[_Union[_generate_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., copies_done: _Optional[int] = ..., fork: _Optional[_Union[Fork, _Mapping]] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("parent", "parent_epoch", "group", "index", "request", "max_tokens", "priority", "arrival_ns", "tenant", "request_id")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_NS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    parent: bytes
    parent_epoch: int
    group: bytes
    index: int
    request: bytes
    max_tokens: int
    priority: int
    arrival_ns: int
    tenant: bytes
    request_id: str
    def __init__(self, parent: _Optional[bytes] = ..., parent_epoch: _Optional[int] = ..., group: _Optional[bytes] = ..., index: _Optional[int] = ..., request: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[int] = ..., arrival_ns: _Optional[int] = ..., tenant: _Optional[bytes] = ..., request_id: _Optional[str] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("rows", "blocks")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[SequenceRef]
    blocks: bytes
    def __init__(self, rows: _Optional[_Iterable[_Union[SequenceRef, _Mapping]]] = ..., blocks: _Optional[bytes] = ...) -> None: ...

class SequenceRef(_message.Message):
    __slots__ = ("sequence", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Fenced(_message.Message):
    __slots__ = ("sequence", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class HoldingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("state", "step", "bound_ms", "busy", "running", "waiting", "float_blocks", "tokens_per_second", "steps_waited", "wait_p99_ms", "preemptions", "replayed", "reprefilled", "prompt_tokens", "generation_tokens")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BOUND_MS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FLOAT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STEPS_WAITED_FIELD_NUMBER: _ClassVar[int]
    WAIT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    REPREFILLED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    state: WorkerState
    step: int
    bound_ms: int
    busy: bool
    running: int
    waiting: int
    float_blocks: int
    tokens_per_second: float
    steps_waited: int
    wait_p99_ms: float
    preemptions: int
    replayed: int
    reprefilled: int
    prompt_tokens: int
    generation_tokens: int
    def __init__(self, state: _Optional[_Union[WorkerState, str]] = ..., step: _Optional[int] = ..., bound_ms: _Optional[int] = ..., busy: _Optional[bool] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., float_blocks: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., steps_waited: _Optional[int] = ..., wait_p99_ms: _Optional[float] = ..., preemptions: _Optional[int] = ..., replayed: _Optional[int] = ..., reprefilled: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ...) -> None: ...

class Acked(_message.Message):
    __slots__ = ("refusals", "granted")
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    granted: bytes
    def __init__(self, refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., granted: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("sequence", "epoch", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    error: Error
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: bytes
    def __init__(self, blocks: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("sequence", "epoch", "kind", "recorded_len", "kv_len", "blocks", "copies", "token_ids", "cached_len", "lost_len", "alone")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECORDED_LEN_FIELD_NUMBER: _ClassVar[int]
    KV_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_LEN_FIELD_NUMBER: _ClassVar[int]
    LOST_LEN_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    kind: OpenKind
    recorded_len: int
    kv_len: int
    blocks: bytes
    copies: _containers.RepeatedCompositeFieldContainer[CopyOrder]
    token_ids: bytes
    cached_len: int
    lost_len: int
    alone: bool
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., kind: _Optional[_Union[OpenKind, str]] = ..., recorded_len: _Optional[int] = ..., kv_len: _Optional[int] = ..., blocks: _Optional[bytes] = ..., copies: _Optional[_Iterable[_Union[CopyOrder, _Mapping]]] = ..., token_ids: _Optional[bytes] = ..., cached_len: _Optional[int] = ..., lost_len: _Optional[int] = ..., alone: _Optional[bool] = ...) -> None: ...

class CopyOrder(_message.Message):
    __slots__ = ("source", "destination", "slots")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    source: bytes
    destination: bytes
    slots: int
    def __init__(self, source: _Optional[bytes] = ..., destination: _Optional[bytes] = ..., slots: _Optional[int] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("sequence", "needed_blocks", "available_blocks", "for_prefix")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NEEDED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FOR_PREFIX_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    needed_blocks: int
    available_blocks: int
    for_prefix: bool
    def __init__(self, sequence: _Optional[bytes] = ..., needed_blocks: _Optional[int] = ..., available_blocks: _Optional[int] = ..., for_prefix: _Optional[bool] = ...) -> None: ...

class Retry(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    def __init__(self, sequence: _Optional[bytes] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("sequence", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    error: Error
    def __init__(self, sequence: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("sequence", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Handover(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Holdings(_message.Message):
    __slots__ = ("blocks", "sequences")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    blocks: bytes
    sequences: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, blocks: _Optional[bytes] = ..., sequences: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("sequence", "epoch", "recorded_len", "finish")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECORDED_LEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    recorded_len: int
    finish: _generate_pb2.FinishReason
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., recorded_len: _Optional[int] = ..., finish: _Optional[_Union[_generate_pb2.FinishReason, str]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("version", "wait")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    version: int
    wait: bool
    def __init__(self, version: _Optional[int] = ..., wait: _Optional[bool] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "workers", "pools")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    version: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    pools: _containers.RepeatedCompositeFieldContainer[PoolInfo]
    def __init__(self, version: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolInfo, _Mapping]]] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("id", "endpoint", "pool", "model", "state", "pid", "step", "age_ms", "busy", "running", "waiting", "float_blocks", "tokens_per_second", "steps_waited", "wait_p99_ms", "preemptions", "session", "prompt_tokens", "generation_tokens", "silent_ms", "replayed", "reprefilled")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    FLOAT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STEPS_WAITED_FIELD_NUMBER: _ClassVar[int]
    WAIT_P99_MS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    REPREFILLED_FIELD_NUMBER: _ClassVar[int]
    id: str
    endpoint: str
    pool: str
    model: str
    state: WorkerState
    pid: int
    step: int
    age_ms: int
    busy: bool
    running: int
    waiting: int
    float_blocks: int
    tokens_per_second: float
    steps_waited: int
    wait_p99_ms: float
    preemptions: int
    session: str
    prompt_tokens: int
    generation_tokens: int
    silent_ms: int
    replayed: int
    reprefilled: int
    def __init__(self, id: _Optional[str] = ..., endpoint: _Optional[str] = ..., pool: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[WorkerState, str]] = ..., pid: _Optional[int] = ..., step: _Optional[int] = ..., age_ms: _Optional[int] = ..., busy: _Optional[bool] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., float_blocks: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., steps_waited: _Optional[int] = ..., wait_p99_ms: _Optional[float] = ..., preemptions: _Optional[int] = ..., session: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ..., silent_ms: _Optional[int] = ..., replayed: _Optional[int] = ..., reprefilled: _Optional[int] = ...) -> None: ...

class PoolInfo(_message.Message):
    __slots__ = ("name", "model", "fingerprint", "geometry", "num_blocks", "max_model_len", "vocab_size", "dtype", "device", "pool_bytes", "metadata_bytes", "blocks", "prefix_queries", "prefix_hits", "evictions", "preemptions", "sequences", "tokens_held", "exporter", "partial_hits", "prefix_waits", "memory", "orphans", "adoptions", "reprefilled")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    GEOMETRY_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    METADATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_HELD_FIELD_NUMBER: _ClassVar[int]
    EXPORTER_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_HITS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_WAITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    ORPHANS_FIELD_NUMBER: _ClassVar[int]
    ADOPTIONS_FIELD_NUMBER: _ClassVar[int]
    REPREFILLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    fingerprint: str
    geometry: Geometry
    num_blocks: int
    max_model_len: int
    vocab_size: int
    dtype: str
    device: str
    pool_bytes: int
    metadata_bytes: int
    blocks: BlockCounts
    prefix_queries: int
    prefix_hits: int
    evictions: int
    preemptions: int
    sequences: int
    tokens_held: int
    exporter: str
    partial_hits: int
    prefix_waits: int
    memory: MemoryUse
    orphans: int
    adoptions: int
    reprefilled: int
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., geometry: _Optional[_Union[Geometry, _Mapping]] = ..., num_blocks: _Optional[int] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., pool_bytes: _Optional[int] = ..., metadata_bytes: _Optional[int] = ..., blocks: _Optional[_Union[BlockCounts, _Mapping]] = ..., prefix_queries: _Optional[int] = ..., prefix_hits: _Optional[int] = ..., evictions: _Optional[int] = ..., preemptions: _Optional[int] = ..., sequences: _Optional[int] = ..., tokens_held: _Optional[int] = ..., exporter: _Optional[str] = ..., partial_hits: _Optional[int] = ..., prefix_waits: _Optional[int] = ..., memory: _Optional[_Union[MemoryUse, _Mapping]] = ..., orphans: _Optional[int] = ..., adoptions: _Optional[int] = ..., reprefilled: _Optional[int] = ...) -> None: ...

class MemoryUse(_message.Message):
    __slots__ = ("slots", "allocated", "reserved", "cached", "quarantined", "shared", "fragmented", "tokens")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    slots: int
    allocated: int
    reserved: int
    cached: int
    quarantined: int
    shared: int
    fragmented: int
    tokens: int
    def __init__(self, slots: _Optional[int] = ..., allocated: _Optional[int] = ..., reserved: _Optional[int] = ..., cached: _Optional[int] = ..., quarantined: _Optional[int] = ..., shared: _Optional[int] = ..., fragmented: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class BlockCounts(_message.Message):
    __slots__ = ("free", "granted", "tail", "sealed", "quarantined", "cached", "shared", "pinned")
    FREE_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    free: int
    granted: int
    tail: int
    sealed: int
    quarantined: int
    cached: int
    shared: int
    pinned: int
    def __init__(self, free: _Optional[int] = ..., granted: _Optional[int] = ..., tail: _Optional[int] = ..., sealed: _Optional[int] = ..., quarantined: _Optional[int] = ..., cached: _Optional[int] = ..., shared: _Optional[int] = ..., pinned: _Optional[int] = ...) -> None: ...

class ReadRecord(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    def __init__(self, sequence: _Optional[bytes] = ..., **kwargs) -> None: ...

class Record(_message.Message):
    __slots__ = ("sequence", "epoch", "token_ids", "recorded_len", "prompt_len", "finish", "stop_token_id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RECORDED_LEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    token_ids: bytes
    recorded_len: int
    prompt_len: int
    finish: _generate_pb2.FinishReason
    stop_token_id: int
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., recorded_len: _Optional[int] = ..., prompt_len: _Optional[int] = ..., finish: _Optional[_Union[_generate_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., **kwargs) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("request_id", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: bytes
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[bytes] = ...) -> None: ...

class FoundRequest(_message.Message):
    __slots__ = ("sequences",)
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[FoundSequence]
    def __init__(self, sequences: _Optional[_Iterable[_Union[FoundSequence, _Mapping]]] = ...) -> None: ...

class FoundSequence(_message.Message):
    __slots__ = ("sequence", "index", "epoch", "group", "request", "prompt_len", "prompt", "session", "finished")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    index: int
    epoch: int
    group: bytes
    request: bytes
    prompt_len: int
    prompt: bytes
    session: str
    finished: bool
    def __init__(self, sequence: _Optional[bytes] = ..., index: _Optional[int] = ..., epoch: _Optional[int] = ..., group: _Optional[bytes] = ..., request: _Optional[bytes] = ..., prompt_len: _Optional[int] = ..., prompt: _Optional[bytes] = ..., session: _Optional[str] = ..., finished: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "pid", "boot_epoch", "uptime_seconds", "pools", "workers", "health", "health_reason", "run_dir", "memory_budget_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    BOOT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    HEALTH_REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    pid: int
    boot_epoch: int
    uptime_seconds: float
    pools: _containers.RepeatedCompositeFieldContainer[PoolInfo]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    health: str
    health_reason: str
    run_dir: str
    memory_budget_bytes: int
    def __init__(self, version: _Optional[str] = ..., pid: _Optional[int] = ..., boot_epoch: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., pools: _Optional[_Iterable[_Union[PoolInfo, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., health: _Optional[str] = ..., health_reason: _Optional[str] = ..., run_dir: _Optional[str] = ..., memory_budget_bytes: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("kind", "pool", "page_size", "page_token", "state")
    KIND_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    kind: ResourceKind
    pool: str
    page_size: int
    page_token: str
    state: str
    def __init__(self, kind: _Optional[_Union[ResourceKind, str]] = ..., pool: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("blocks", "sequences", "workers", "pools", "tiers", "next_page_token", "total_size")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[BlockInfo]
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceInfo]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerInfo]
    pools: _containers.RepeatedCompositeFieldContainer[PoolInfo]
    tiers: _containers.RepeatedCompositeFieldContainer[TierInfo]
    next_page_token: str
    total_size: int
    def __init__(self, blocks: _Optional[_Iterable[_Union[BlockInfo, _Mapping]]] = ..., sequences: _Optional[_Iterable[_Union[SequenceInfo, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerInfo, _Mapping]]] = ..., pools: _Optional[_Iterable[_Union[PoolInfo, _Mapping]]] = ..., tiers: _Optional[_Iterable[_Union[TierInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class BlockInfo(_message.Message):
    __slots__ = ("pool", "id", "generation", "state", "refcount", "holder", "hash", "parent_hash", "depth", "idle_seconds", "indexed", "sequences", "token_ids", "pinned")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REFCOUNT_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PARENT_HASH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INDEXED_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    pool: str
    id: int
    generation: int
    state: str
    refcount: int
    holder: str
    hash: str
    parent_hash: str
    depth: int
    idle_seconds: float
    indexed: bool
    sequences: _containers.RepeatedScalarFieldContainer[str]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    pinned: bool
    def __init__(self, pool: _Optional[str] = ..., id: _Optional[int] = ..., generation: _Optional[int] = ..., state: _Optional[str] = ..., refcount: _Optional[int] = ..., holder: _Optional[str] = ..., hash: _Optional[str] = ..., parent_hash: _Optional[str] = ..., depth: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., indexed: _Optional[bool] = ..., sequences: _Optional[_Iterable[str]] = ..., token_ids: _Optional[_Iterable[int]] = ..., pinned: _Optional[bool] = ...) -> None: ...

class SequenceInfo(_message.Message):
    __slots__ = ("pool", "id", "request_id", "index", "worker", "epoch", "prompt_len", "recorded_len", "kv_len", "cached_len", "priority", "state", "finish", "num_blocks", "age_seconds", "tenant", "blocks", "row")
    POOL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    RECORDED_LEN_FIELD_NUMBER: _ClassVar[int]
    KV_LEN_FIELD_NUMBER: _ClassVar[int]
    CACHED_LEN_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    pool: str
    id: str
    request_id: str
    index: int
    worker: str
    epoch: int
    prompt_len: int
    recorded_len: int
    kv_len: int
    cached_len: int
    priority: int
    state: str
    finish: str
    num_blocks: int
    age_seconds: float
    tenant: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    row: int
    def __init__(self, pool: _Optional[str] = ..., id: _Optional[str] = ..., request_id: _Optional[str] = ..., index: _Optional[int] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., prompt_len: _Optional[int] = ..., recorded_len: _Optional[int] = ..., kv_len: _Optional[int] = ..., cached_len: _Optional[int] = ..., priority: _Optional[int] = ..., state: _Optional[str] = ..., finish: _Optional[str] = ..., num_blocks: _Optional[int] = ..., age_seconds: _Optional[float] = ..., tenant: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., row: _Optional[int] = ...) -> None: ...

class TierInfo(_message.Message):
    __slots__ = ("name", "pool", "capacity_bytes", "used_bytes", "blocks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    pool: str
    capacity_bytes: int
    used_bytes: int
    blocks: int
    def __init__(self, name: _Optional[str] = ..., pool: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., blocks: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("kind", "pool", "id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    kind: ResourceKind
    pool: str
    id: str
    def __init__(self, kind: _Optional[_Union[ResourceKind, str]] = ..., pool: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("block", "sequence", "worker", "pool")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    block: BlockInfo
    sequence: SequenceInfo
    worker: WorkerInfo
    pool: PoolInfo
    def __init__(self, block: _Optional[_Union[BlockInfo, _Mapping]] = ..., sequence: _Optional[_Union[SequenceInfo, _Mapping]] = ..., worker: _Optional[_Union[WorkerInfo, _Mapping]] = ..., pool: _Optional[_Union[PoolInfo, _Mapping]] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class FsckReply(_message.Message):
    __slots__ = ("findings", "pools", "blocks", "sequences")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[FsckFinding]
    pools: int
    blocks: int
    sequences: int
    def __init__(self, findings: _Optional[_Iterable[_Union[FsckFinding, _Mapping]]] = ..., pools: _Optional[int] = ..., blocks: _Optional[int] = ..., sequences: _Optional[int] = ...) -> None: ...

class FsckFinding(_message.Message):
    __slots__ = ("pool", "kind", "subject", "message")
    POOL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    pool: str
    kind: str
    subject: str
    message: str
    def __init__(self, pool: _Optional[str] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class FlushRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class FlushReply(_message.Message):
    __slots__ = ("evicted",)
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    evicted: int
    def __init__(self, evicted: _Optional[int] = ...) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("pool", "count")
    POOL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    pool: str
    count: int
    def __init__(self, pool: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class EvictReply(_message.Message):
    __slots__ = ("evicted",)
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    evicted: int
    def __init__(self, evicted: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("pool", "token_ids", "tenant", "ttl_seconds")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    token_ids: bytes
    tenant: bytes
    ttl_seconds: int
    def __init__(self, pool: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., tenant: _Optional[bytes] = ..., ttl_seconds: _Optional[int] = ...) -> None: ...

class PinReply(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("pool", "token_ids", "tenant")
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    pool: str
    token_ids: bytes
    tenant: bytes
    def __init__(self, pool: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., tenant: _Optional[bytes] = ...) -> None: ...

class UnpinReply(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker", "wait")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    wait: bool
    def __init__(self, worker: _Optional[str] = ..., wait: _Optional[bool] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: str
    def __init__(self, worker: _Optional[str] = ...) -> None: ...

class UndrainReply(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class DeletePoolRequest(_message.Message):
    __slots__ = ("pool",)
    POOL_FIELD_NUMBER: _ClassVar[int]
    pool: str
    def __init__(self, pool: _Optional[str] = ...) -> None: ...

class DeletePoolReply(_message.Message):
    __slots__ = ("freed_bytes",)
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...
