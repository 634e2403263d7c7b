"""Real processes for tests: a KV manager, a worker with a tiny random model, and a gateway's side of its socket."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from holdfast import wire
from holdfast.v1 import compute_pb2, generate_pb2

DEADLINE_S = 60.0
TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "hidden_act": "silu",
    "eos_token_id": 1,
}


@dataclass
class Stream:
    """What came for one sequence."""

    tokens: list[int] = field(default_factory=list)
    next: int | None = None  # position of the token to come
    again: bool = False  # another gateway had begun it: its last token may come twice
    finish: int = 0
    error: int = 0
    message: str = ""
    last: compute_pb2.TokensEntry | None = None

    @property
    def ended(self) -> bool:
        return bool(self.finish or self.error)


class Gateway:
    """A DEALER to a worker, and what it said."""

    def __init__(self, path: Path) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"ipc://{path}")
        self.streams: dict[bytes, Stream] = {}
        self.messages = 0

    def send(self, **body: Any) -> None:
        self.socket.send(wire.encode(compute_pb2.WorkerRequest(**body)))

    def submit(self, prompt: list[int], *, sequence: bytes | None = None, **fields: Any) -> Stream:
        """`fields` override those of the Submit; `stopping` and `sampling` are dicts."""
        sequence = sequence or secrets.token_bytes(16)
        stream = self.streams.setdefault(sequence, Stream(again=bool(fields.get("adopt"))))
        sampling = {"temperature": 0.0, "seed": 1} | fields.pop("sampling", {})
        stopping = {"max_tokens": 8, "ignore_eos": True} | fields.pop("stopping", {})
        submit = {
            "sequence": sequence,
            "group": sequence,
            "n": 1,
            "request_id": f"r-{sequence.hex()[:6]}",
            "token_ids": struct.pack(f"<{len(prompt)}I", *prompt),
            "arrival_ns": time.monotonic_ns(),
            "tenant": bytes(32),
        } | fields
        self.send(
            submit=compute_pb2.Submit(
                **submit,
                sampling=generate_pb2.SamplingParams(**sampling),
                stopping=generate_pb2.StoppingCriteria(**stopping),
            )
        )
        return stream

    def cancel(self, stream: Stream, reason: int = generate_pb2.FINISH_REASON_CANCELLED) -> None:
        (sequence,) = [key for key, value in self.streams.items() if value is stream]
        self.send(cancel=compute_pb2.Cancel(sequence=sequence, reason=reason))

    def pump(self, timeout_s: float = 0.05) -> None:
        """Takes what is here, after waiting a little for the first."""
        while self.socket.poll(int(timeout_s * 1000)):
            self._take(wire.decode(compute_pb2.WorkerReply, self.socket.recv()))
            timeout_s = 0

    def _take(self, reply: compute_pb2.WorkerReply) -> None:
        self.messages += 1
        if reply.WhichOneof("body") == "rejected":
            stream = self.streams[reply.rejected.sequence]
            assert not stream.ended, "two ends"
            stream.error, stream.message = reply.rejected.error.code, reply.rejected.error.message
            return
        for entry in reply.tokens.entries:
            stream = self.streams[entry.sequence]
            assert not stream.ended, "tokens after the end"
            ids = struct.unpack(f"<{len(entry.token_ids) // 4}I", entry.token_ids)
            start = entry.first_position if stream.next is None else stream.next
            had = start - entry.first_position
            assert had == 0 or (stream.again and 0 < had <= len(ids)), "a gap"
            assert list(ids[:had]) == stream.tokens[len(stream.tokens) - had :], "another token"
            stream.next = entry.first_position + len(ids)
            stream.tokens.extend(ids[had:])
            stream.finish, stream.last = entry.finish, entry

    def until(self, what: Any, deadline_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + deadline_s
        while not what():
            assert time.monotonic() < deadline, "nothing came in time"
            self.pump()

    def until_ended(self, *streams: Stream) -> None:
        self.until(lambda: all(stream.ended for stream in streams))

    def close(self) -> None:
        self.context.destroy(0)


class Service:
    """One run directory with its processes; each is ended by its own id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "tiny"
        self.model.mkdir()
        (self.model / "config.json").write_text(json.dumps(TINY))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.gateways: list[Gateway] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HOLDFAST_RUN_DIR": str(self.folder)}
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            stderr=(self.folder / f"{name}.log").open("ab"),
            stdout=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def kvmanager(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start("kvmanager", "kvmanager", "serve", "--kv-memory", "4MiB", *arguments)

    def worker(self, worker_id: str = "w", *arguments: str) -> subprocess.Popen[bytes]:
        own = (
            "--model",
            str(self.model),
            "--load-format",
            "dummy",
            "--threads",
            "1",
            "--worker-id",
            worker_id,
        )
        return self.start(worker_id, "compute", "serve", *own, *arguments)

    def gateway(self, worker_id: str = "w") -> Gateway:
        gateway = Gateway(self.folder / f"worker-{worker_id}.sock")
        self.gateways.append(gateway)
        return gateway

    def log(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def until_logged(self, name: str, message: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            found = [line for line in self.log(name) if line["message"] == message]
            if found:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"{name} never said {message!r}: {(self.folder / f'{name}.log').read_text()}")

    def daemon_pid(self) -> int:
        return int(self.until_logged("kvmanager", "daemon ready")["pid"])

    def ask(self, *arguments: str) -> Any:
        """The JSON that a kvmanager command prints."""
        environment = os.environ | {"HOLDFAST_RUN_DIR": str(self.folder)}
        done = subprocess.run(
            [sys.executable, "-m", "kvmanager", *arguments, "-o", "json"],
            env=environment,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def used_blocks(self) -> int:
        """Blocks that are neither free nor cached nor float."""
        (pool,) = self.ask("status")["pools"]
        blocks = pool["blocks"]
        return int(pool["num_blocks"] - blocks["free"] - blocks["cached"] - blocks["granted"])

    def until_unused(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.used_blocks():
            assert time.monotonic() < deadline, "blocks are still in use"
            time.sleep(0.05)

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.close()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def service() -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="hf"))
    one = Service(folder)
    try:
        yield one
    finally:
        one.close()
        shutil.rmtree(folder, ignore_errors=True)
