"""`version`: what is installed here; asks nobody."""

import click

from holdfast import __version__, wire
from kvmanager.commands.options import Invocation, verb
from kvmanager.render import emit, emit_json


@click.command()
@verb
def version(invocation: Invocation) -> None:
    """Print the version installed here."""
    found = {"version": __version__, "protocol": wire.VERSION}
    if invocation.as_json:
        emit_json(found)
    else:
        emit(f"kvmanager {found['version']} (protocol {found['protocol']})")
