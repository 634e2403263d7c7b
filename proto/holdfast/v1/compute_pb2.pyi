from holdfast.v1 import generate_pb2 as _generate_pb2
from holdfast.v1 import kvmanager_pb2 as _kvmanager_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerRequest(_message.Message):
    __slots__ = ("submit", "cancel")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    cancel: Cancel
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("sequence", "group", "index", "n", "request_id", "token_ids", "sampling", "stopping", "logprobs", "prompt_logprobs", "priority", "arrival_ns", "tenant", "adopt", "output_ids")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_NS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    group: bytes
    index: int
    n: int
    request_id: str
    token_ids: bytes
    sampling: _generate_pb2.SamplingParams
    stopping: _generate_pb2.StoppingCriteria
    logprobs: int
    prompt_logprobs: int
    priority: int
    arrival_ns: int
    tenant: bytes
    adopt: bool
    output_ids: bytes
    def __init__(self, sequence: _Optional[bytes] = ..., group: _Optional[bytes] = ..., index: _Optional[int] = ..., n: _Optional[int] = ..., request_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[_generate_pb2.SamplingParams, _Mapping]] = ..., stopping: _Optional[_Union[_generate_pb2.StoppingCriteria, _Mapping]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., priority: _Optional[int] = ..., arrival_ns: _Optional[int] = ..., tenant: _Optional[bytes] = ..., adopt: _Optional[bool] = ..., output_ids: _Optional[bytes] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("sequence", "reason")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    reason: _generate_pb2.FinishReason
    def __init__(self, sequence: _Optional[bytes] = ..., reason: _Optional[_Union[_generate_pb2.FinishReason, str]] = ...) -> None: ...

class WorkerReply(_message.Message):
    __slots__ = ("tokens", "rejected")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    tokens: Tokens
    rejected: Rejected
    def __init__(self, tokens: _Optional[_Union[Tokens, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("step", "entries")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    step: int
    entries: _containers.RepeatedCompositeFieldContainer[TokensEntry]
    def __init__(self, step: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[TokensEntry, _Mapping]]] = ...) -> None: ...

class TokensEntry(_message.Message):
    __slots__ = ("sequence", "epoch", "first_position", "token_ids", "logprobs", "prompt_logprobs", "finish", "stop_token_id", "stopped_by_token", "cached_tokens", "queue_seconds", "stalled_seconds")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    STOPPED_BY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STALLED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    epoch: int
    first_position: int
    token_ids: bytes
    logprobs: _containers.RepeatedCompositeFieldContainer[_generate_pb2.TokenLogprob]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_generate_pb2.TokenLogprob]
    finish: _generate_pb2.FinishReason
    stop_token_id: int
    stopped_by_token: bool
    cached_tokens: int
    queue_seconds: float
    stalled_seconds: float
    def __init__(self, sequence: _Optional[bytes] = ..., epoch: _Optional[int] = ..., first_position: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., logprobs: _Optional[_Iterable[_Union[_generate_pb2.TokenLogprob, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_generate_pb2.TokenLogprob, _Mapping]]] = ..., finish: _Optional[_Union[_generate_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., stopped_by_token: _Optional[bool] = ..., cached_tokens: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., stalled_seconds: _Optional[float] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("sequence", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: bytes
    error: _kvmanager_pb2.Error
    def __init__(self, sequence: _Optional[bytes] = ..., error: _Optional[_Union[_kvmanager_pb2.Error, _Mapping]] = ...) -> None: ...
