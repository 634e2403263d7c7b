"""protobuf <-> kvmanager.attachment: what is said on the attachment socket."""

import re
from typing import Final

from holdfast.rundir import MAX_SOCKET_PATH_BYTES
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.attachment import NO_SESSION, PROTOCOL_VERSION, Attached, AttachSpec
from kvmanager.codec import decode_error
from kvmanager.errors import Invalid, Mismatch
from kvmanager.messages import SessionId
from kvmanager.packing import HASH_BYTES, ID_BYTES, exact, short, within

KV_DTYPES: Final = ("float32", "bfloat16", "float16", "float8_e4m3")
WORKER_ID: Final = re.compile(r"[a-z0-9-]{1,32}")


def encode_attach(spec: AttachSpec) -> pb.AttachRequest:
    geometry = pb.Geometry(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        block_size=spec.block_size,
        dtype=spec.kv_dtype,
        layout_version=spec.layout_version,
    )
    return pb.AttachRequest(
        protocol_version=PROTOCOL_VERSION,
        worker_id=spec.worker_id,
        endpoint=spec.endpoint,
        geometry=geometry,
        model_fingerprint=spec.model_fingerprint,
        model=spec.model,
        device=spec.device,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        vocab_size=spec.vocab_size,
        dtype=spec.dtype,
        peak_bytes=spec.peak_bytes,
        resume_session=spec.resume_session,
    )


def decode_attach(request: pb.AttachRequest) -> AttachSpec:
    """The worker's statement, every field within its bounds; Invalid names the field."""
    if request.protocol_version != PROTOCOL_VERSION:
        raise Mismatch(f"protocol_version: {request.protocol_version}, this daemon speaks {PROTOCOL_VERSION}")
    return AttachSpec(
        model=short(request.model, 128, "model", least=1),
        model_fingerprint=exact(request.model_fingerprint, HASH_BYTES, "model_fingerprint"),
        dtype=short(request.dtype, 32, "dtype", least=1),
        vocab_size=within(request.vocab_size, 1, 2**24, "vocab_size"),
        device=short(request.device, 64, "device", least=1),
        num_layers=within(request.geometry.num_layers, 1, 1024, "geometry.num_layers"),
        num_kv_heads=within(request.geometry.num_kv_heads, 1, 1024, "geometry.num_kv_heads"),
        head_dim=within(request.geometry.head_dim, 1, 1024, "geometry.head_dim"),
        block_size=_power_of_two(within(request.geometry.block_size, 1, 1024, "geometry.block_size")),
        kv_dtype=_kv_dtype(request.geometry.dtype),
        layout_version=within(request.geometry.layout_version, 1, 2**16, "geometry.layout_version"),
        max_model_len=within(request.max_model_len, 1, 2**20, "max_model_len"),
        max_num_seqs=within(request.max_num_seqs, 1, 2**14, "max_num_seqs"),
        worker_id=_worker_id(request.worker_id),
        endpoint=_endpoint(request.endpoint),
        peak_bytes=within(request.peak_bytes, 0, 2**62, "peak_bytes"),
        resume_session=SessionId(exact(request.resume_session, ID_BYTES, "resume_session"))
        if request.resume_session
        else NO_SESSION,
    )


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise Invalid(f"geometry.block_size: {value}, expected a power of two", field="geometry.block_size")
    return value


def _kv_dtype(value: str) -> str:
    if value not in KV_DTYPES:
        raise Invalid(
            f"geometry.dtype: {value!r}, expected one of {', '.join(KV_DTYPES)}", field="geometry.dtype"
        )
    return value


def _worker_id(value: str) -> str:
    if not WORKER_ID.fullmatch(value):
        raise Invalid("worker_id: expected 1..32 characters of a-z, 0-9 and -", field="worker_id")
    return value


def _endpoint(value: str) -> str:
    short(value, MAX_SOCKET_PATH_BYTES, "endpoint", least=1)
    if not value.startswith("/") or len(value.encode()) > MAX_SOCKET_PATH_BYTES:
        raise Invalid(
            f"endpoint: expected an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes", field="endpoint"
        )
    return value


def encode_attached(answer: Attached) -> pb.AttachReply:
    attached = pb.Attached(
        session=answer.session,
        boot_epoch=answer.boot_epoch,
        pool=answer.pool,
        num_blocks=answer.num_blocks,
        pool_bytes=answer.pool_bytes,
        metadata_bytes=answer.metadata_bytes,
        nonce=answer.nonce,
        exporter=answer.exporter,
        allocation_bytes=answer.allocation_bytes,
        number=answer.number,
    )
    return pb.AttachReply(attached=attached)


def decode_attached(reply: pb.AttachReply) -> Attached:
    """The daemon's answer; its refusal is raised."""
    if reply.WhichOneof("result") == "error":
        raise decode_error(reply.error)
    answer = reply.attached
    return Attached(
        session=SessionId(exact(answer.session, ID_BYTES, "session")),
        boot_epoch=answer.boot_epoch,
        pool=short(answer.pool, 128, "pool", least=1),
        num_blocks=within(answer.num_blocks, 1, 2**31 - 1, "num_blocks"),
        pool_bytes=answer.pool_bytes,
        metadata_bytes=answer.metadata_bytes,
        nonce=exact(answer.nonce, ID_BYTES, "nonce"),
        exporter=short(answer.exporter, 16, "exporter", least=1),
        allocation_bytes=answer.allocation_bytes,
        number=answer.number,
    )
