"""Verbs that drop cached blocks: flush and evict. They ask first, and only free what no sequence uses."""

import sys

import click
from google.protobuf.message import Message

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands.inspect import pool_option
from kvmanager.commands.jsonform import to_json
from kvmanager.commands.options import Invocation, verb
from kvmanager.render import emit, emit_json, note

MAX_COUNT = 2**32 - 1

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command()
@pool_option
@yes_option
@verb
def flush(invocation: Invocation, pool: str, yes: bool) -> int:
    """Drop all cached blocks.

    Those that a sequence uses stay.
    """
    return change(invocation, pb.FlushRequest(pool=pool), f"Drop all cached blocks of {where(pool)}?", yes)


@click.command()
@click.option(
    "--count", type=click.IntRange(1, MAX_COUNT), required=True, metavar="N", help="Blocks, oldest use first."
)
@pool_option
@yes_option
@verb
def evict(invocation: Invocation, count: int, pool: str, yes: bool) -> int:
    """Drop the oldest cached blocks.

    At most N, the least recently used first. Those that a sequence uses stay.
    """
    request = pb.EvictRequest(pool=pool, count=count)
    return change(invocation, request, f"Drop {count} cached blocks of {where(pool)}?", yes)


def where(pool: str) -> str:
    return f"pool {pool}" if pool else "every pool"


def change(invocation: Invocation, request: Message, question: str, yes: bool) -> int:
    if not (yes or confirmed(question)):
        note("nothing changed")
        return 1
    reply = invocation.ask(request)
    if invocation.as_json:
        emit_json(to_json(reply))
    else:
        emit(f"{reply.evicted} blocks evicted")
    return 0


def confirmed(question: str) -> bool:
    """Asks on a terminal; without one nobody can answer, and silence is not consent."""
    if not sys.stdin.isatty():
        raise click.UsageError("this drops cached blocks: say --yes, or run it on a terminal to be asked")
    return click.confirm(question, err=True)
