"""Verbs that look and change nothing: status, health, get, describe, fsck."""

from collections.abc import Iterator

import click
from google.protobuf.message import Message

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands import views
from kvmanager.commands.jsonform import to_json
from kvmanager.commands.kinds import BLOCKS, DESCRIBED, POOLS, WORKERS, Kind, KindParam, KindsParam
from kvmanager.commands.options import Invocation, verb
from kvmanager.render import Column, emit, emit_json, emit_table, note

PAGE_SIZE = 1000  # items a reply: the daemon's other peers wait for a page, so not its longest
SERVING = "SERVING"
BLOCK_STATES = ("free", "granted", "tail", "sealed", "quarantined")

pool_option = click.option("--pool", default="", metavar="NAME", help="Only this pool.")


@click.command()
@verb
def status(invocation: Invocation) -> None:
    """Show the daemon, its pools and its workers."""
    reply: pb.Status = invocation.ask(pb.StatusRequest())
    if invocation.as_json:
        emit_json(to_json(reply))
        return
    emit("\n".join(views.status_lines(reply)))
    for kind, items in ((POOLS, reply.pools), (WORKERS, reply.workers)):
        if items:
            emit("")
            emit_table(kind.columns, items, headers=invocation.headers)


@click.command()
@verb
def health(invocation: Invocation) -> int:
    """Say SERVING and exit 0, or exit 1.

    For probes. The reason, if there is one, is on stderr.
    """
    reply: pb.Status = invocation.ask(pb.StatusRequest())
    if invocation.as_json:
        emit_json({"health": reply.health, "health_reason": reply.health_reason})
    else:
        emit(reply.health)
        if reply.health_reason:
            note(reply.health_reason)
    return 0 if reply.health == SERVING else 1


@click.command()
@click.argument("kinds", type=KindsParam(), metavar="KIND[,KIND…]")
@pool_option
@click.option("--state", type=click.Choice(BLOCK_STATES), help="Blocks: only this state [all but free].")
@verb
def get(invocation: Invocation, kinds: tuple[Kind, ...], pool: str, state: str | None) -> None:
    """List things, one kind or several.

    Kinds: blocks, sequences, workers, pools, tiers; with commas between them.
    """
    if state and kinds != (BLOCKS,):
        raise click.UsageError("--state is for blocks only")
    found = {kind: sorted(items_of(invocation, kind, pool, state or ""), key=kind.order) for kind in kinds}
    if invocation.as_json:
        emit_json({"items": [kind.as_json(item) for kind, items in found.items() for item in items]})
        return
    for place, (kind, items) in enumerate(found.items()):
        show_list(kind, items, headers=invocation.headers, apart=place > 0)


def items_of(invocation: Invocation, kind: Kind, pool: str, state: str) -> Iterator[Message]:
    """All pages of one list."""
    token = ""
    while True:
        reply: pb.ListReply = invocation.ask(
            pb.ListRequest(kind=kind.number, pool=pool, state=state, page_size=PAGE_SIZE, page_token=token)
        )
        yield from getattr(reply, kind.field)
        token = reply.next_page_token
        if not token:
            return


def show_list(kind: Kind, items: list[Message], *, headers: bool, apart: bool) -> None:
    if not items:
        note(f"no {kind.field}")
        return
    if apart:
        emit("")
    emit_table(kind.columns, items, headers=headers)


@click.command()
@click.argument("kind", type=KindParam(DESCRIBED), metavar="KIND")
@click.argument("name", metavar="ID")
@pool_option
@verb
def describe(invocation: Invocation, kind: Kind, name: str, pool: str) -> None:
    """Show one thing in full.

    Kinds: block, sequence, worker, pool. A sequence is named by a unique prefix of its id.
    """
    reply: pb.DescribeReply = invocation.ask(pb.DescribeRequest(kind=kind.number, pool=pool, id=name))
    item = getattr(reply, kind.name)
    if invocation.as_json:
        emit_json(kind.as_json(item, detailed=True))
    else:
        emit("\n".join(lines_of(invocation, item)))


def lines_of(invocation: Invocation, item: Message) -> list[str]:
    match item:
        case pb.BlockInfo():
            return views.block_lines(item)
        case pb.SequenceInfo():
            return views.sequence_lines(item, block_size(invocation, item.pool))
        case pb.WorkerInfo():
            return views.worker_lines(item)
        case pb.PoolInfo():
            return views.pool_lines(item)
    raise AssertionError(f"no description of {item.DESCRIPTOR.name}")


def block_size(invocation: Invocation, pool: str) -> int:
    """Token slots of one block of a pool."""
    reply: pb.DescribeReply = invocation.ask(pb.DescribeRequest(kind=pb.RESOURCE_KIND_POOL, id=pool))
    return reply.pool.geometry.block_size


FINDING_COLUMNS: tuple[Column[pb.FsckFinding], ...] = (
    Column("POOL", lambda f: f.pool or "-"),
    Column("KIND", lambda f: f.kind),
    Column("SUBJECT", lambda f: f.subject),
    Column("MESSAGE", lambda f: f.message),
)


@click.command()
@pool_option
@verb
def fsck(invocation: Invocation, pool: str) -> int:
    """Check the metadata; exit 1 on findings.

    Rebuilds counters, free list and prefix index from the tables and compares them.
    """
    reply: pb.FsckReply = invocation.ask(pb.FsckRequest(pool=pool))
    if invocation.as_json:
        emit_json(to_json(reply))
    else:
        if reply.findings:
            emit_table(FINDING_COLUMNS, reply.findings, headers=invocation.headers)
        checked = f"{reply.pools} pools, {reply.blocks} blocks, {reply.sequences} sequences"
        emit(f"{len(reply.findings)} findings in {checked}" if reply.findings else f"clean: {checked}")
    return 1 if reply.findings else 0
