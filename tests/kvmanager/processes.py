"""A real keeper with its daemon, and workers without a model, for tests of the processes."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from holdfast.rundir import RunDir
from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.client import AdminClient, AttachSpec, DaemonLink, attach
from kvmanager.errors import KvError
from kvmanager.keeper_link import KeeperError, KeeperLink
from kvmanager.messages import Commit, CommitEntry, Grant, Holdings, OpenOrAdopt

PATIENCE_S = 30.0
ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
PROMPT = list(range(100, 140))
BLOCK = 16


def eventually(ask, accept=bool, patience_s=PATIENCE_S):
    """The first answer that is accepted; polls, as the other side is another process."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = ask()
        if accept(answer):
            return answer
        assert time.monotonic() < deadline, f"still {answer!r} after {patience_s} s"
        time.sleep(0.02)


def listens(path: Path) -> bool:
    """Whether a keeper answers there."""
    try:
        KeeperLink(path).close()
    except KeeperError:
        return False
    return True


class Keeper:
    """A keeper alone, or with a child of the test's own."""

    def __init__(self, *child: str, options: Sequence[str] = ()) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="hf"))
        self.socket = self.path / "keeper.sock"
        self.errors, self.options = self.path / "log", options
        with self.errors.open("wb") as log:
            self.process = subprocess.Popen(self.command(*child), stderr=log, env=ENVIRON, cwd=ROOT)
        eventually(lambda: listens(self.socket) or self.process.poll() is not None)

    def command(self, *child: str) -> list[str]:
        own = [sys.executable, "-m", "kvmanager.keeper", *self.options]
        return [*own, str(self.path), "json", "debug", *child]

    def log(self, message: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.errors.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if message in line["message"]]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        shutil.rmtree(self.path)


class Service:
    """`kvmanager serve` in a run directory of its own; its log is a list of JSON objects."""

    def __init__(self, *flags: str, keeper_only: bool = False) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="hf"))
        self.sockets = RunDir(self.path)
        self.log_path = self.path / "log"
        self.flags = ("--run-dir", str(self.path), "--log-format", "json", "--log-level", "debug", *flags)
        self.process = self.start(verb="keeper" if keeper_only else "serve")

    def start(self, *more: str, verb: str = "serve") -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kvmanager", verb, *self.flags, *more],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=ENVIRON,
                cwd=ROOT,
            )

    def log(self, message: str = "") -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if message in line["message"]]

    def ask(self, body: Any, timeout_s: float = PATIENCE_S) -> Any:
        with AdminClient(self.sockets, timeout_s) as client:
            return client.request(body)

    def status(self) -> pb.Status:
        def ask() -> pb.Status | None:
            with contextlib.suppress(KvError):
                return self.ask(pb.StatusRequest(), 5.0)
            return None

        return eventually(ask)

    def counts(self, pool: int = 0) -> pb.BlockCounts:
        return self.status().pools[pool].blocks

    def fsck(self) -> list[Any]:
        return list(self.ask(pb.FsckRequest()).findings)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach_spec(sockets: RunDir, **changes: Any) -> AttachSpec:
    values: dict[str, Any] = {
        "model": "tiny",
        "model_fingerprint": bytes(range(32)),
        "dtype": "float32",
        "vocab_size": 1000,
        "device": "cpu",
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_dim": 16,
        "block_size": BLOCK,
        "kv_dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 16,
        "worker_id": "w0",
    }
    values |= {"endpoint": str(sockets.worker(changes.get("worker_id", "w0")))} | changes
    return AttachSpec(**values)


class Worker:
    """An attached worker in this process."""

    def __init__(self, sockets: RunDir, **changes: Any) -> None:
        self.attachment = attach(sockets, attach_spec(sockets, **changes), PATIENCE_S, on_wait=lambda _: None)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.link = DaemonLink(self.context, sockets, self.attachment)
        self.unasked: list[Any] = []
        self.float: list[Any] = []
        self.step = 0

    def resume(self, sockets: RunDir) -> None:
        """Attaches to the next daemon as the session that it was."""
        spec = replace(self.attachment.spec, resume_session=self.attachment.session)
        self.link.close()
        self.attachment.close()
        self.attachment = attach(sockets, spec, PATIENCE_S, on_wait=lambda _: None)
        self.link = DaemonLink(self.context, sockets, self.attachment)

    def holdings(self) -> Any:
        self.link.ask_holdings()
        return self.answers([0])[0]

    def ask(self, message: Any) -> Any:
        return self.answers([self.link.send(message)])[0]

    def answers(self, numbers: list[int]) -> list[Any]:
        """The replies to these messages, in the messages' order."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + PATIENCE_S
        while not found.keys() >= set(numbers):
            assert time.monotonic() < deadline, "no answer"
            self.link.socket.poll(1000, self.link.events)
            for number, reply in self.link.receive():
                if number or isinstance(reply, Holdings):
                    found[number] = reply
                else:
                    self.unasked.append(reply)
        return [found[number] for number in numbers]

    def open(self, prompt: list[int] = PROMPT, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "sequence": secrets.token_bytes(16),
            "group": secrets.token_bytes(16),
            "index": 0,
            "request": b"",
            "token_ids": prompt,
            "max_tokens": 100,
            "priority": 0,
            "arrival_ns": time.monotonic_ns(),
            "tenant": bytes(32),
        }
        return self.ask(OpenOrAdopt(**(values | changes)))

    def take(self, count: int) -> list[Any]:
        if len(self.float) < count:
            self.float += self.ask(Grant(count=count - len(self.float))).blocks
        taken, self.float = self.float[:count], self.float[count:]
        return taken

    def entry(self, opened: Any, prompt: list[int] = PROMPT, **changes: Any) -> CommitEntry:
        """The entry that says: the whole prompt is computed, and one token was drawn."""
        blocks = self.take(-(-len(prompt) // BLOCK) - len(opened.blocks))
        values: dict[str, Any] = {
            "sequence": opened.sequence,
            "epoch": opened.epoch,
            "base_recorded": opened.recorded_len,
            "base_kv": opened.kv_len,
            "token_ids": [7],
            "kv_len": len(prompt),
            "blocks": blocks,
        }
        return CommitEntry(**(values | changes))

    def commit(self, *entries: CommitEntry) -> Any:
        self.step += 1
        acked = self.ask(Commit(step=self.step, entries=entries))
        assert not acked.refusals, acked
        return acked

    def close(self) -> None:
        self.link.close()
        self.context.term()
        self.attachment.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
