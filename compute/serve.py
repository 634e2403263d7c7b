"""Puts one worker together and runs it: settings → attach → threads → the link's loop → exit code.

The main thread owns the sockets; the step thread loads the weights while heartbeats say WARMING already.
"""

import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Final

import structlog
import torch
import zmq

from compute.codec import Bounds
from compute.comeback import Comeback
from compute.config import ComputeSettings
from compute.device import peak_bytes, resolve, uuid_of
from compute.fingerprint import fingerprint
from compute.front import Front
from compute.gpu.support import check_supported
from compute.link import End, Link
from compute.mailbox import Inbox, Outbox, ToLink, ToStep
from compute.model_config import ModelConfig
from compute.runner import Runner, load, resolve_dtype
from compute.sampler import Sampler
from compute.scheduler import Limits, Scheduler
from compute.weights import WeightsError
from compute.worker import Steps, Worker
from kvmanager.client import Attachment, AttachSpec, DaemonLink, attach
from kvmanager.errors import Invalid
from kvmanager.gpu_mapping import map_pool
from kvmanager.layout import PoolLayout

JOIN_S: Final = 5.0
LAST_WORDS_MS: Final = 200  # for the heartbeat that says it drained
EXIT_CODES: Final = {End.DRAINED: 0, End.GRACE_OVER: 0, End.AT_ONCE: 0, End.DAEMON_GONE: 1, End.CRASHED: 1}

log = structlog.get_logger()


def serve(settings: ComputeSettings) -> int:
    """Runs the worker to its end; the process's exit code. Raises what the user can mend, before any request came."""
    chosen = {"device": resolve(settings.device), "worker_id": settings.worker_id or secrets.token_hex(4)}
    settings = settings.model_copy(update=chosen)
    config = ModelConfig.from_folder(settings.model)
    check_device(settings, config)
    bounds = Bounds(config.vocab_size, model_len(settings, config))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front = Front(context, settings.sockets.prepare().worker(settings.worker_id), bounds)
    try:
        # The function runs after the connect: it starts CUDA's driver.
        stated = partial(with_device, attach_spec(settings, config, bounds))
        with attach(settings.sockets, stated, settings.attach_timeout) as attachment:
            say_attached(settings, bounds, attachment)
            return run(settings, config, context, front, attachment)
    finally:
        front.close()
        context.destroy(0)  # also what an exception left open; `front` has its own last words


def say_attached(settings: ComputeSettings, bounds: Bounds, attachment: Attachment) -> None:
    log.info("attached", worker=settings.worker_id, pool=attachment.pool, blocks=attachment.num_blocks)
    room = (attachment.num_blocks - 1) * settings.block_size
    if room < bounds.max_model_len:
        log.warning(
            "the pool is smaller than one request may be", tokens=room, max_model_len=bounds.max_model_len
        )


def check_device(settings: ComputeSettings, config: ModelConfig) -> None:
    """Invalid or Unimplemented for what a GPU does not serve."""
    if settings.device == "cuda":
        dtype = resolve_dtype(config, settings.dtype, settings.device)
        check_supported(config, dtype, settings.block_size)


def model_len(settings: ComputeSettings, config: ModelConfig) -> int:
    """The bound that is served; Invalid for one that the model cannot do."""
    wanted = settings.max_model_len or config.max_model_len
    if wanted > config.max_model_len:
        raise Invalid(f"--max-model-len {wanted} is more than the model's {config.max_model_len} positions")
    return wanted


def attach_spec(settings: ComputeSettings, config: ModelConfig, bounds: Bounds) -> AttachSpec:
    kind = settings.device
    dtype = resolve_dtype(config, settings.dtype, kind)
    geometry = config.geometry(settings.block_size, settings.kv_dtype(dtype))
    return AttachSpec(
        model=settings.model_name,
        model_fingerprint=fingerprint(settings.model, settings.load_format, settings.seed),
        dtype=dtype,
        vocab_size=config.vocab_size,
        device=kind,
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        block_size=geometry.block_size,
        kv_dtype=geometry.dtype,
        max_model_len=bounds.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        worker_id=settings.worker_id,
        endpoint=str(settings.sockets.worker(settings.worker_id)),
        peak_bytes=0 if kind == "cpu" else need(settings, config, dtype, bounds),
    )


def need(settings: ComputeSettings, config: ModelConfig, dtype: str, bounds: Bounds) -> int:
    """Device memory beside the pool."""
    return peak_bytes(
        config,
        dtype,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=bounds.max_model_len,
    )


def with_device(spec: AttachSpec) -> AttachSpec:
    """The spec, with the device as the daemon knows it."""
    return replace(spec, device=uuid_of(spec.device))


def run(
    settings: ComputeSettings,
    config: ModelConfig,
    context: "zmq.Context[zmq.Socket[bytes]]",
    front: Front,
    attachment: Attachment,
) -> int:
    inbox: Inbox[ToStep] = Inbox()
    outbox: Outbox[ToLink] = Outbox()
    scheduler = Scheduler(limits(settings, config, attachment.num_blocks))
    worker = Worker(scheduler, loader(settings, config, attachment), inbox, outbox)
    daemon = DaemonLink(context, settings.sockets, attachment)
    comeback = Comeback(
        context, settings.sockets, attachment.spec, attachment.nonce, settings.reattach_timeout
    )
    mail, ttl = (inbox, outbox), settings.gateway_ttl
    link = Link(front, daemon, attachment, worker, mail, comeback=comeback, gateway_ttl_s=ttl)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopper(link))
    worker.start()
    end = link.run(settings.shutdown_grace)
    link.close(LAST_WORDS_MS if end is End.DRAINED else 0)
    report(end, link.error)
    code = EXIT_CODES[end]
    if not worker.join(JOIN_S if end is not End.AT_ONCE else 0.2):
        leave(front, code)
    return code


def limits(settings: ComputeSettings, config: ModelConfig, num_blocks: int) -> Limits:
    return Limits(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=model_len(settings, config),
        block_size=settings.block_size,
        num_blocks=num_blocks,
        eos_ids=config.eos_ids,
        vocab_size=config.vocab_size,
        max_waiting=settings.max_waiting,
        prefix_caching=settings.enable_prefix_caching,
    )


def loader(settings: ComputeSettings, config: ModelConfig, attachment: Attachment) -> Callable[[], Steps]:
    """Loads the weights and maps the pool; called in the step thread."""

    def make() -> Steps:
        torch.set_num_threads(settings.threads)  # of this thread: the only one that computes
        dtype = resolve_dtype(config, settings.dtype, settings.device)
        layout = PoolLayout(config.geometry(settings.block_size, settings.kv_dtype(dtype)))
        mapping = map_pool(attachment, layout)
        model = load(
            settings.model, dtype, settings.device, load_format=settings.load_format, seed=settings.seed
        )
        log.info("weights loaded", model=settings.model_name, dtype=dtype, device=settings.device)
        if settings.device == "cpu":
            return Runner(model, mapping.pool, Sampler(config.vocab_size))
        from compute.gpu.runner import GpuRunner  # noqa: PLC0415 - Triton comes with CUDA's torch alone

        return GpuRunner(model, mapping.pool, limits(settings, config, attachment.num_blocks))

    return make


def stopper(link: Link) -> Callable[[int, FrameType | None], None]:
    """The first signal drains, the second ends at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        link.stop()

    return handle


def report(end: End, error: BaseException | None) -> None:
    if end is End.CRASHED and not isinstance(error, WeightsError):
        log.error("worker ends", reason=end.value, exc_info=error)
    elif error is not None:
        log.error("worker ends", reason=end.value, error=str(error))
    else:
        log.info("worker ends", reason=end.value)


def leave(front: Front, code: int) -> None:
    """The step thread is still within a step: no orderly end waits for it."""
    front.close()
    sys.stderr.flush()
    os._exit(code)
