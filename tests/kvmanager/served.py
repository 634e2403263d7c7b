"""A real keeper, daemon and attached worker for the tests of the command line."""

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import zmq

from holdfast.rundir import RunDir
from kvmanager.cli import run
from kvmanager.client import AttachSpec, DaemonLink, attach
from kvmanager.messages import (
    Acked,
    Commit,
    CommitEntry,
    FinishReason,
    Grant,
    OpenOrAdopt,
    Release,
    SequenceRef,
)

PATIENCE_S = 60
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
PROMPT = list(range(100, 140))


def command(*args):
    return [sys.executable, "-m", "kvmanager", *args]


def kvmanager(*args, check=None, **environ):
    """One command's end; its exit code is checked if given."""
    done = subprocess.run(
        command(*args),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=ENVIRON | environ,
        timeout=PATIENCE_S,
        check=False,
    )
    assert check is None or done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def called(*args, check=None):
    """The same without a process of its own, which takes a tenth of the time."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, ENVIRON, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(args)
    assert check is None or code == check, (code, out.getvalue(), err.getvalue())
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


class Service:
    """`kvmanager serve` in a run directory of its own."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="hf"))
        self.process = subprocess.Popen(
            command("serve", "--run-dir", str(self.path), "--kv-memory", "24MiB"),
            env=ENVIRON,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE_S
        while self.run("health").returncode:
            assert self.process.poll() is None, "serve ended"
            assert time.monotonic() < deadline, "serve did not become healthy"
            time.sleep(0.05)

    def run(self, *args, last=(), **kwargs):
        return called(*args, "--run-dir", str(self.path), *last, **kwargs)

    def spawn(self, *args, **kwargs):
        return kvmanager(*args, "--run-dir", str(self.path), **kwargs)

    def json(self, *args, check=0):
        done = self.run(*args, "-o", "json", check=check)
        return json.loads(done.stdout)

    def daemon_pid(self):
        return self.json("status")["pid"]

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.stdout.close()
            shutil.rmtree(self.path, ignore_errors=True)


class Worker:
    """A worker without a model: it attaches, opens sequences and commits what a model might have computed."""

    def __init__(self, path):
        sockets = RunDir(path)
        spec = AttachSpec(
            model="tiny",
            model_fingerprint=bytes(range(32)),
            dtype="float32",
            vocab_size=1000,
            device="cpu",
            num_layers=2,
            num_kv_heads=2,
            head_dim=16,
            block_size=16,
            kv_dtype="float32",
            max_model_len=512,
            max_num_seqs=256,
            worker_id="w0",
            endpoint=str(sockets.worker("w0")),
        )
        self.attachment = attach(sockets, spec, PATIENCE_S)
        self.context = zmq.Context()
        self.link = DaemonLink(self.context, sockets, self.attachment)
        self.float = []

    def ask(self, message):
        number = self.link.send(message)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.link.socket.poll(1000, self.link.events)
            for answered, reply in self.link.receive():
                self.float.extend(reply.granted if isinstance(reply, Acked) else ())
                if answered == number:
                    return reply
        raise TimeoutError(message)

    def take(self, count):
        if len(self.float) < count:
            self.float.extend(self.ask(Grant(count=count)).blocks)
        taken, self.float = self.float[:count], self.float[count:]
        return taken

    def open(self, request_id, prompt=PROMPT):
        return self.ask(
            OpenOrAdopt(
                sequence=secrets.token_bytes(16),
                group=secrets.token_bytes(16),
                index=0,
                request=b"",
                token_ids=prompt,
                max_tokens=100,
                priority=0,
                arrival_ns=time.monotonic_ns(),
                tenant=bytes(32),
                request_id=request_id,
            )
        )

    def prefill(self, opened, prompt=PROMPT, finish=FinishReason.NONE):
        blocks = self.take(-(-len(prompt) // 16) - len(opened.blocks))
        entry = CommitEntry(
            sequence=opened.sequence,
            epoch=opened.epoch,
            base_recorded=opened.recorded_len,
            base_kv=opened.kv_len,
            token_ids=[7],
            kv_len=len(prompt),
            blocks=blocks,
            finish=finish,
        )
        acked = self.ask(Commit(step=1, entries=[entry]))
        assert not acked.refusals, acked

    def release(self, opened):
        self.ask(Release(rows=[SequenceRef(opened.sequence, opened.epoch)]))

    def close(self):
        self.link.close()
        self.context.term()
        self.attachment.close()
