"""What the prefix cache costs the daemon for a request of which nothing is found, in this process.

The daemon's own allocator, tables and index (`KvState`) take the messages that a worker would send for one request: its
opening, its chunks, its tokens one by one, its end. Twice, in turn: with the cache, and opened with `no_cache`. Every
prompt is new, and the pool is full of former requests' blocks, so each block that is taken evicts one where there is a
cache. A sealed block's hash is made either way, as the records are checked by it: it is timed apart.
"""

import random
import struct
import time
from collections.abc import Sequence

from benchmarks import report
from benchmarks.engine_local import LocalLink, pool_spec
from kvmanager.layout import Geometry
from kvmanager.messages import (
    Acked,
    BlockRef,
    Commit,
    CommitEntry,
    FinishReason,
    Grant,
    Granted,
    Opened,
    OpenOrAdopt,
    Release,
    SequenceId,
    SequenceRef,
)
from kvmanager.prefix import KeyChain

BLOCK, CHUNK, VOCAB = 16, 2048, 1 << 16
ROOM = 8  # requests that the pool has blocks for


class Daemon:
    """One state and the requests that ran on it."""

    def __init__(self, prompt: int, new_tokens: int, *, no_cache: bool) -> None:
        self.prompt, self.new_tokens, self.no_cache = prompt, new_tokens, no_cache
        blocks = -(-(prompt + new_tokens) // BLOCK)
        self.spec = pool_spec(
            Geometry(1, 1, 2, BLOCK, "bfloat16"), ROOM * blocks, max_model_len=prompt + new_tokens, max_num_seqs=16,
            vocab_size=VOCAB,
        )  # fmt: skip
        self.link = LocalLink(self.spec)
        self.number = 0

    def request(self, tokens: Sequence[int]) -> float:
        """Microseconds of CPU that the daemon's policy takes for one request."""
        self.number += 1
        ref = SequenceRef(SequenceId(self.number.to_bytes(16, "big")), 1)
        begin = time.thread_time()
        floats = list(self.ask(Grant(count=-(-len(tokens) // BLOCK), starving=True), Granted).blocks)
        opened = self.ask(
            OpenOrAdopt(
                sequence=ref.sequence, group=bytes(16), index=0, request=b"", token_ids=tokens[: self.prompt],
                max_tokens=self.new_tokens, priority=0, arrival_ns=0, tenant=bytes(32), no_cache=self.no_cache,
            ),
            Opened,
        )  # fmt: skip
        assert opened.cached_len == 0
        for entry in entries(ref, tokens, self.prompt, floats):
            assert not self.ask(Commit(step=1, entries=[entry]), Acked).refusals
        self.ask(Release(rows=[ref], blocks=floats), Acked)
        return 1e6 * (time.thread_time() - begin)

    def ask(self, message, kind):  # type: ignore[no-untyped-def]
        self.link.send(message)
        ((_, reply),) = self.link.receive()
        assert isinstance(reply, kind), reply
        return reply


def entries(
    ref: SequenceRef, tokens: Sequence[int], prompt: int, floats: list[BlockRef]
) -> list[CommitEntry]:
    """Chunks of the prompt, the last with a token; then a token a step. Takes what they need from `floats`."""
    ends = [*range(CHUNK, prompt, CHUNK), *range(prompt, len(tokens))]
    found, kv_len, held = [], 0, 0
    for end in ends:
        drawn = tokens[end : end + 1] if end >= prompt else ()
        need = -(-end // BLOCK) - held
        found.append(
            CommitEntry(
                sequence=ref.sequence, epoch=1, base_recorded=max(prompt, end), base_kv=kv_len, token_ids=drawn,
                kv_len=end, blocks=[floats.pop(0) for _ in range(need)],
                finish=FinishReason.LENGTH if end == len(tokens) - 1 else FinishReason.NONE,
            )
        )  # fmt: skip
        kv_len, held = end, held + need
    return found


def hashing(daemon: Daemon, tokens: Sequence[int]) -> float:
    """Microseconds of the hashes of one request's full blocks."""
    keys, size = KeyChain(daemon.spec), 4 * BLOCK
    data = struct.pack(f"<{len(tokens)}I", *tokens)
    key = keys.root(bytes(32))
    begin = time.thread_time()
    for start in range(0, (len(tokens) - 1) // BLOCK * size, size):
        key = keys.block(key, data[start : start + size])
    return 1e6 * (time.thread_time() - begin)


def measure(prompt: int, new_tokens: int, requests: int = 100) -> dict[str, report.Figure]:
    """Per request: with the cache, without, the difference of each pair, and the hashes."""
    rng = random.Random(5)
    with_cache, without = (Daemon(prompt, new_tokens, no_cache=off) for off in (False, True))
    times: dict[str, list[float]] = {"with": [], "without": [], "hashes": []}
    for _ in range(2 * ROOM + requests):
        tokens = [rng.randrange(VOCAB) for _ in range(prompt + new_tokens)]
        times["with"].append(with_cache.request(tokens))
        times["without"].append(without.request(tokens))
        times["hashes"].append(hashing(with_cache, tokens))
    figures = {name: report.Figure(values[2 * ROOM :]) for name, values in times.items()}
    pairs = zip(figures["with"].values, figures["without"].values, strict=True)
    assert with_cache.link.state.evictions > 0
    return figures | {"difference": report.Figure([a - b for a, b in pairs])}
