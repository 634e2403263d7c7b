"""A worker on a GPU with two ways to the same allocator: the daemon's process, and one within this process.

    python -m benchmarks.engine_worker [compute serve's flags]

One model, one pool (the daemon's), one runner; two schedulers with their links, on worker-d.sock (the daemon) and
worker-l.sock (local). Whoever has no requests sleeps, so the client decides by where it submits which one is timed.
Prints a JSON line when both are ready: the card, versions, copy bandwidth, blocks.
"""

import json
import signal
import threading
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from statistics import median
from types import FrameType
from typing import Any

import click
import torch
import zmq

from benchmarks.engine_local import LocalLink, NoAttachment, pool_spec
from compute.codec import Bounds
from compute.config import ComputeSettings
from compute.front import Front
from compute.link import Link
from compute.mailbox import Inbox, Outbox, ToLink, ToStep
from compute.model_config import ModelConfig
from compute.scheduler import Scheduler
from compute.serve import attach_spec, limits, loader, model_len, with_device
from compute.worker import Steps, Worker
from holdfast import logs
from holdfast import settings as holdfast_settings
from kvmanager.client import Attachment, DaemonLink, attach
from kvmanager.messages import WorkerState

COPY_BYTES = 2**31


class Once:
    """The runner, made by the first worker's step thread and shared with the second's."""

    def __init__(self, make: Callable[[], Steps]) -> None:
        self.make, self.made = make, threading.Event()
        self.runner: Steps | None = None

    def first(self) -> Steps:
        self.runner = self.make()
        self.runner.prepare()
        self.runner.prepare = lambda: None  # type: ignore[method-assign]
        self.made.set()
        return self.runner

    def second(self) -> Steps:
        self.made.wait()
        assert self.runner is not None
        return self.runner


class Stack:
    """A scheduler, its step thread and its link."""

    def __init__(
        self, name: str, parts: "Parts", daemon: Any, attachment: Any, load: Callable[[], Steps]
    ) -> None:
        settings = parts.settings
        path = settings.sockets.path / f"worker-{name}.sock"
        inbox: Inbox[ToStep] = Inbox()
        outbox: Outbox[ToLink] = Outbox()
        self.front = Front(parts.context, path, parts.bounds)
        scheduler = Scheduler(limits(settings, parts.config, parts.attachment.num_blocks))
        self.worker = Worker(scheduler, load, inbox, outbox)
        self.link = Link(self.front, daemon, attachment, self.worker, (inbox, outbox))
        self.worker.start()

    def run(self) -> None:
        self.link.run(1.0)
        self.front.close()


class Parts:
    """What both stacks are made of."""

    def __init__(self, settings: ComputeSettings, attachment: Attachment) -> None:
        self.settings, self.attachment = settings, attachment
        self.config = ModelConfig.from_folder(settings.model)
        self.bounds = Bounds(self.config.vocab_size, model_len(settings, self.config))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def stacks(self) -> tuple[Stack, Stack]:
        settings, attachment = self.settings, self.attachment
        once = Once(loader(settings, self.config, attachment))
        link = DaemonLink(self.context, settings.sockets, attachment)
        by_daemon = Stack("d", self, link, attachment, once.first)
        spec = pool_spec(
            self.config.geometry(settings.block_size, "bfloat16"),
            attachment.num_blocks,
            max_model_len=self.bounds.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            vocab_size=self.config.vocab_size,
        )
        local = Stack("l", self, LocalLink(spec), NoAttachment(), once.second)
        return by_daemon, local


def copy_bandwidth() -> float:
    """TB/s of a device copy, read and write."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return 2 * COPY_BYTES / median(times) / 1e9


def facts(parts: Parts) -> dict[str, Any]:
    free, total = torch.cuda.mem_get_info()
    return {
        "gpu": torch.cuda.get_device_name(),
        "versions": {name: version(name) for name in ("torch", "triton", "pyzmq", "protobuf")},
        "copy_tb_s": copy_bandwidth(),
        "blocks": parts.attachment.num_blocks,
        "exporter": parts.attachment.exporter,
        "used_gib": (total - free) / 2**30,
    }


def say_when_ready(parts: Parts, stacks: tuple[Stack, ...], ready: threading.Event) -> None:
    while not all(stack.worker.state is WorkerState.READY for stack in stacks):
        if ready.wait(0.05):
            return
    print(json.dumps(facts(parts)), flush=True)


@click.command()
@holdfast_settings.options(ComputeSettings)
def main(**flags: Any) -> None:
    settings = holdfast_settings.load(ComputeSettings, "compute", flags | {"worker_id": "d"})
    logs.configure("compute", settings.log_format, settings.log_level)
    config = ModelConfig.from_folder(settings.model)
    bounds = Bounds(config.vocab_size, model_len(settings, config))
    stated = partial(with_device, attach_spec(settings, config, bounds))
    with attach(settings.sockets, stated, settings.attach_timeout) as attachment:
        parts = Parts(settings, attachment)
        by_daemon, local = parts.stacks()
        ended = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            ended.set()
            by_daemon.link.stop()
            local.link.stop()

        signal.signal(signal.SIGTERM, stop)
        threading.Thread(target=local.run, daemon=True).start()
        threading.Thread(target=say_when_ready, args=(parts, (by_daemon, local), ended), daemon=True).start()
        by_daemon.run()


if __name__ == "__main__":
    main()
