"""What `describe` and `status` print for people: pure functions from messages to lines of text."""

from collections.abc import Iterator, Sequence
from typing import Final

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands.kinds import idle, in_use, marks, worker_state
from kvmanager.gpu_memory import LEGACY
from kvmanager.render import age, fields, mib, percent

ROW_BLOCKS: Final = 8  # blocks in a line of a drawn table
ROW_TOKENS: Final = 16
LEGACY_PROMISE: Final = (
    "weaker than usual: with legacy IPC the KV memory lives only as long as the process that allocated it"
)


def block_lines(block: pb.BlockInfo) -> list[str]:
    state = block.state + (f" ({marks(block)})" if marks(block) else "")
    chain = (
        ((("Hash", block.hash), ("Parent hash", block.parent_hash or "none: first block of its chain")))
        if block.hash
        else ()
    )
    head = fields(
        (
            ("Block", str(block.id)),
            ("Pool", block.pool),
            ("State", state),
            ("Refcount", str(block.refcount)),
            ("Generation", str(block.generation)),
            ("Holder", block.holder or "none"),
            *chain,
            *((("Depth", str(block.depth)),) if block.hash else ()),
            ("Idle", idle(block)),
            ("Sequences", ", ".join(block.sequences) or "none"),
        )
    )
    return [*head, "Token ids" + ("" if block.token_ids else "  none"), *token_lines(block.token_ids)]


def token_lines(ids: Sequence[int]) -> Iterator[str]:
    for start in range(0, len(ids), ROW_TOKENS):
        yield "  " + " ".join(map(str, ids[start : start + ROW_TOKENS]))


def sequence_lines(sequence: pb.SequenceInfo, block_size: int) -> list[str]:
    lengths = (
        f"{sequence.recorded_len} recorded, {sequence.prompt_len} of them prompt; "
        f"{sequence.kv_len} in the cache, {sequence.cached_len} of them found there"
    )
    head = fields(
        (
            ("Sequence", sequence.id),
            ("Request", f"{sequence.request_id or '-'} (index {sequence.index})"),
            ("Pool", sequence.pool),
            ("Worker", f"{sequence.worker or 'none'} (epoch {sequence.epoch})"),
            ("State", sequence.state + (f" ({sequence.finish})" if sequence.finish else "")),
            ("Priority", str(sequence.priority)),
            ("Tenant", sequence.tenant),
            ("Age", age(sequence.age_seconds)),
            ("Tokens", lengths),
        )
    )
    return [*head, *table_lines(sequence, block_size)]


def table_lines(sequence: pb.SequenceInfo, block_size: int) -> list[str]:
    """The block table, drawn: positions to the left, then up to eight blocks with their marks.

    positions [0, 16)  [16, 32)  [32, 40)        block size 16, kv_len 40, cached_len 16
                 =7       #9       ~12
    """
    if not sequence.blocks:
        return ["Block table  none"]
    legend = "= found in the cache, # sealed, ~ tail, . nothing yet"
    title = f"Block table  row {sequence.row}, {len(sequence.blocks)} blocks of {block_size} slots ({legend})"
    width = 1 + max(len(str(block)) for block in sequence.blocks)
    digits = len(str(len(sequence.blocks) * block_size - 1))
    return [title, *drawn_rows(sequence, block_size, width, digits)]


def drawn_rows(sequence: pb.SequenceInfo, block_size: int, width: int, digits: int) -> Iterator[str]:
    for first in range(0, len(sequence.blocks), ROW_BLOCKS):
        ids = sequence.blocks[first : first + ROW_BLOCKS]
        cells = (
            (mark(sequence, (first + i) * block_size, block_size) + str(block)).rjust(width)
            for i, block in enumerate(ids)
        )
        start, end = first * block_size, (first + len(ids)) * block_size - 1
        yield f"  {start:>{digits}} - {end:>{digits}}  " + "  ".join(cells)


def mark(sequence: pb.SequenceInfo, start: int, block_size: int) -> str:
    """State of the block of positions [start, start + block_size), as the sequence's lengths say."""
    if start + block_size <= sequence.cached_len:
        return "="
    if start + block_size <= sequence.kv_len:
        return "#"
    return "~" if start < sequence.kv_len else "."


def worker_lines(worker: pb.WorkerInfo) -> list[str]:
    busy = f"busy, {worker.silent_ms} ms in this step" if worker.busy else "idle"
    return fields(
        (
            ("Worker", worker.id),
            ("Pool", worker.pool),
            ("Model", worker.model),
            ("State", worker_state(worker)),
            ("Pid", str(worker.pid)),
            ("Endpoint", worker.endpoint),
            ("Session", worker.session),
            ("Heartbeat", f"{age(worker.age_ms / 1000)} ago"),
            ("Step", f"{worker.step} ({busy})"),
            ("Sequences", f"{worker.running} running, {worker.waiting} waiting"),
            ("Float", f"{worker.float_blocks} blocks"),
            ("Tokens", f"{worker.prompt_tokens} prompt, {worker.generation_tokens} generated"),
            ("Rate", f"{worker.tokens_per_second:.1f} tokens/s"),
            ("Steps waited", f"{worker.steps_waited} (p99 {worker.wait_p99_ms:.2f} ms)"),
            ("Preemptions", str(worker.preemptions)),
        )
    )


def pool_lines(pool: pb.PoolInfo) -> list[str]:
    shape, blocks = pool.geometry, pool.blocks
    kv = f"{shape.num_layers} layers, {shape.num_kv_heads} KV heads of {shape.head_dim}, {shape.dtype}"
    states = (
        f"{blocks.free} free, {blocks.granted} float, {blocks.tail} tail, {blocks.sealed} sealed "
        f"({blocks.cached} cached, {blocks.shared} shared), {blocks.quarantined} quarantined"
    )
    hits = f"{pool.prefix_hits} of {pool.prefix_queries} prompt tokens, {pool.partial_hits} by a copy"
    return fields(
        (
            ("Pool", pool.name),
            ("Model", pool.model),
            ("Fingerprint", pool.fingerprint),
            ("Device", f"{pool.device} ({pool.exporter})"),
            *((("Promise", LEGACY_PROMISE),) if pool.exporter == LEGACY else ()),
            ("Geometry", kv),
            (
                "Blocks",
                f"{pool.num_blocks} of {shape.block_size} slots, {percent(in_use(pool), pool.num_blocks)} used",
            ),
            ("States", states),
            ("Memory", f"{mib(pool.pool_bytes)} KV, {mib(pool.metadata_bytes)} metadata"),
            ("Slots", slots_line(pool.memory)),
            ("Tokens", tokens_line(pool.memory)),
            ("Sequences", f"{pool.sequences} live"),
            ("Prefix hits", f"{percent(pool.prefix_hits, pool.prefix_queries)} ({hits})"),
            ("Waits", f"{pool.prefix_waits} for blocks that another was computing"),
            ("Evictions", str(pool.evictions)),
            ("Preemptions", str(pool.preemptions)),
            ("Context", f"{pool.max_model_len} tokens, vocabulary {pool.vocab_size}, weights {pool.dtype}"),
        )
    )


def slots_line(use: pb.MemoryUse) -> str:
    free = use.slots - use.allocated - use.reserved - use.cached - use.quarantined
    return (
        f"{use.slots}: {use.allocated} allocated, {use.reserved} reserved ahead, {use.cached} cached, "
        f"{use.quarantined} quarantined, {free} free"
    )


def tokens_line(use: pb.MemoryUse) -> str:
    """Internal fragmentation is given as a part of what is allocated."""
    waste = f"{use.fragmented} allocated without a token ({percent(use.fragmented, use.allocated)})"
    return f"{use.tokens} held; {use.shared} slots saved by sharing, {waste}"


def pool_memory(pools: Sequence[pb.PoolInfo]) -> Iterator[tuple[str, str]]:
    """Two lines a pool, with its name where there are several."""
    for pool in pools:
        name = f"{pool.name}: " if len(pools) > 1 else ""
        yield "Slots", name + slots_line(pool.memory)
        yield "Tokens", name + tokens_line(pool.memory)


def status_lines(status: pb.Status) -> list[str]:
    health = status.health + (f" ({status.health_reason})" if status.health_reason else "")
    kv, metadata = (sum(getattr(p, part) for p in status.pools) for part in ("pool_bytes", "metadata_bytes"))
    budget = f"at most {mib(status.memory_budget_bytes)} KV a CPU pool"
    weak = [pool.name for pool in status.pools if pool.exporter == LEGACY]
    ways = sorted({pool.exporter for pool in status.pools if pool.device != "cpu"})
    return fields(
        (
            ("Health", health),
            ("Version", status.version),
            ("Daemon", f"pid {status.pid}, boot epoch {status.boot_epoch}, up {age(status.uptime_seconds)}"),
            ("Run directory", status.run_dir),
            ("Memory", f"{mib(kv)} KV, {mib(metadata)} metadata; {budget}"),
            *pool_memory(status.pools),
            *((("GPU sharing", ", ".join(ways)),) if ways else ()),
            *((("Promise", f"{', '.join(weak)}: {LEGACY_PROMISE}"),) if weak else ()),
        )
    )
