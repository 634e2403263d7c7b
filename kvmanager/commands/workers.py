"""Verbs that move work between workers: drain and undrain."""

import time
from typing import Final

import click

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.commands.jsonform import to_json
from kvmanager.commands.options import Invocation, verb
from kvmanager.errors import DeadlineExceeded, NotFound
from kvmanager.render import emit, emit_json

POLL_S: Final = 0.1


@click.command()
@click.argument("worker")
@click.option(
    "--wait", is_flag=True, help="Until it holds nothing; without another worker it finishes its requests."
)
@click.option("--wait-timeout", type=click.FloatRange(0), default=600.0, show_default=True, metavar="SECONDS")
@verb
def drain(invocation: Invocation, worker: str, wait: bool, wait_timeout: float) -> int:
    """Move a worker's requests to others.

    It stops at its next step boundary; another ready worker of its pool goes on with its sequences, and computes
    nothing again. Without another one: exit code 7, or with --wait it finishes what it has. It takes no new requests
    until `undrain`.
    """
    reply = invocation.ask(pb.DrainRequest(worker=worker, wait=wait))
    if wait:
        wait_until_empty(invocation, worker, time.monotonic() + wait_timeout)
    say(invocation, reply, f"worker {worker}: {'drained' if wait else reply.state}")
    return 0


@click.command()
@click.argument("worker")
@verb
def undrain(invocation: Invocation, worker: str) -> int:
    """Let a drained worker take requests again."""
    say(invocation, invocation.ask(pb.UndrainRequest(worker=worker)), f"worker {worker}: ready")
    return 0


def wait_until_empty(invocation: Invocation, worker: str, deadline: float) -> None:
    """A worker that is gone holds nothing either."""
    request = pb.DescribeRequest(kind=pb.RESOURCE_KIND_WORKER, id=worker)
    while True:
        try:
            found = invocation.ask(request).worker
        except NotFound:
            return
        if found.state == pb.WORKER_STATE_DRAINING and not found.running and not found.waiting:
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"worker {worker} still has {found.running + found.waiting} sequences")
        time.sleep(POLL_S)


def say(invocation: Invocation, reply: pb.DrainReply | pb.UndrainReply, text: str) -> None:
    if invocation.as_json:
        emit_json(to_json(reply))
    else:
        emit(text)
