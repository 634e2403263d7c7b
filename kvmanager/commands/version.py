"""`version`: what is installed here; asks nobody."""

from importlib.metadata import version as installed

import click

from holdfast import wire
from kvmanager.commands.options import Invocation, verb
from kvmanager.render import emit, emit_json


@click.command()
@verb
def version(invocation: Invocation) -> None:
    """Print the version installed here."""
    found = {"version": installed("holdfast"), "protocol": wire.VERSION}
    if invocation.as_json:
        emit_json(found)
    else:
        emit(f"kvmanager {found['version']} (protocol {found['protocol']})")
