"""A daemon's view over real pool states, without sockets, for the tests of the admin answers."""

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.admin import HANDLERS
from kvmanager.layout import Geometry, MetaLayout, PoolLayout, PoolSpec
from kvmanager.messages import (
    Commit,
    CommitEntry,
    FinishReason,
    Grant,
    OpenOrAdopt,
    Release,
    SequenceId,
    SequenceRef,
)
from kvmanager.state import KvState

PROMPT = list(range(40))
NAMES = [bytes([i]) * 16 for i in range(1, 4)]


class Pool:
    """A pool's state over its own buffer, and a session that works on it."""

    def __init__(self, name="alpha-1", num_blocks=512):
        self.spec = PoolSpec(
            name=name,
            geometry=Geometry(num_layers=2, num_kv_heads=1, head_dim=8, block_size=16, dtype="float32"),
            num_blocks=num_blocks,
            model="tiny",
            model_fingerprint=bytes(range(32)),
            device="cpu",
            dtype="bfloat16",
            max_model_len=256,
            max_num_seqs=128,
            vocab_size=1000,
            nonce=bytes(16),
        )
        self.buffer = bytearray(MetaLayout(self.spec).total_bytes)
        self.state = KvState.create(self.buffer, self.spec, time.monotonic_ns())
        self.number = 0
        self.session = self.state.attach(
            secrets.token_bytes(16),
            worker_id="w0",
            endpoint="/run/w0.sock",
            pid=1,
            start_time=1,
            now_ns=time.monotonic_ns(),
        )

    @property
    def pool_bytes(self):
        return PoolLayout(self.spec.geometry).block_bytes * self.spec.num_blocks

    @property
    def metadata_bytes(self):
        return len(self.buffer)

    def ask(self, message):
        self.number += 1
        return self.state.apply(self.session, self.number, message, time.monotonic_ns())[0].reply

    def open(self, name, prompt=PROMPT):
        return self.ask(
            OpenOrAdopt(
                sequence=SequenceId(name),
                group=name,
                index=0,
                request=b"",
                token_ids=prompt,
                max_tokens=50,
                priority=3,
                arrival_ns=1,
                tenant=bytes([0xAB]) * 32,
                request_id="r-" + name.hex()[:4],
            )
        )

    def prefill(self, opened, prompt=PROMPT, finish=FinishReason.NONE):
        missing = -(-len(prompt) // 16) - len(opened.blocks)
        entry = CommitEntry(
            sequence=opened.sequence,
            epoch=opened.epoch,
            base_recorded=opened.recorded_len,
            base_kv=opened.kv_len,
            token_ids=[7],
            kv_len=len(prompt),
            blocks=self.ask(Grant(count=missing)).blocks,
            finish=finish,
        )
        assert not self.ask(Commit(step=1, entries=[entry])).refusals

    def cache(self, prompt):
        """A finished sequence whose full blocks stay as cache."""
        opened = self.open(b"\x50" + secrets.token_bytes(15), prompt)
        self.prefill(opened, prompt, FinishReason.LENGTH)
        self.ask(Release(rows=[SequenceRef(opened.sequence, opened.epoch)]))


@dataclass
class View:
    """A daemon without sockets."""

    pools: dict = field(default_factory=dict)
    workers: list = field(default_factory=list)
    boot_epoch: int = 3
    started: float = field(default_factory=time.monotonic)
    run_dir: Path = Path("/run/holdfast")
    memory_budget_bytes: int = 2**30
    ready: bool = True
    findings: dict = field(default_factory=dict)

    def worker_infos(self):
        return self.workers


def one_pool():
    """A pool with a computed sequence, two that wait for their first step, and four cached blocks; one worker."""
    pool = Pool()
    pool.prefill(pool.open(NAMES[0]))
    for name in NAMES[1:]:
        pool.open(name, [500, 501])
    pool.cache([900 + i for i in range(64)])
    worker = pb.WorkerInfo(id="w0", pool="alpha-1", session="aa", state=pb.WORKER_STATE_READY)
    return View(pools={"alpha-1": pool}, workers=[worker])


def ask(view, case, **request):
    kind = pb.DaemonRequest.DESCRIPTOR.fields_by_name[case].message_type._concrete_class
    return HANDLERS[case](view, kind(**request))
