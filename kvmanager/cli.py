"""The command line `kvmanager`: which verbs there are, and which exit code each kind of failure has.

A verb's module is imported when the verb is used: a health check loads neither the daemon nor rich. Data goes to
stdout, everything else to stderr.

    0 ok · 1 error · 2 usage · 3 not found · 4 unreachable · 5 deadline · 7 conflict · 130 interrupted
"""

import importlib
from collections.abc import Sequence
from typing import Final

import click

from holdfast.rundir import RunDirError
from holdfast.settings import SettingsError
from kvmanager import errors
from kvmanager.commands.options import shared

# Verb → where its click command is, in the order of --help.
VERBS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("kvmanager.commands.serve", "serve"),
    "keeper": ("kvmanager.commands.serve", "keeper"),
    "status": ("kvmanager.commands.inspect", "status"),
    "health": ("kvmanager.commands.inspect", "health"),
    "get": ("kvmanager.commands.inspect", "get"),
    "describe": ("kvmanager.commands.inspect", "describe"),
    "fsck": ("kvmanager.commands.inspect", "fsck"),
    "flush": ("kvmanager.commands.change", "flush"),
    "evict": ("kvmanager.commands.change", "evict"),
    "drain": ("kvmanager.commands.workers", "drain"),
    "undrain": ("kvmanager.commands.workers", "undrain"),
    "version": ("kvmanager.commands.version", "version"),
}

INTERRUPTED: Final = 130
# The first class that matches decides; what is not here is 1.
EXIT_CODES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (SettingsError, 2),
    (RunDirError, 2),
    (errors.Invalid, 2),
    (errors.NotFound, 3),
    (errors.DeadlineExceeded, 5),
    (errors.Unavailable, 4),
    (errors.Conflict, 7),
)


class Verbs(click.Group):
    """The verbs of VERBS, each imported at its first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@shared
def kvmanager() -> None:
    """Owns the KV cache of a holdfast service: start the daemon, look at its tables, check them.

    Exit codes: 0 ok, 1 error, 2 usage, 3 not found, 4 unreachable, 5 deadline, 7 conflict.
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code. Messages are on stderr already."""
    try:
        code = kvmanager.main(list(arguments), prog_name="kvmanager", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        return INTERRUPTED if isinstance(abort.__cause__ or abort.__context__, KeyboardInterrupt) else 1
    except (SettingsError, RunDirError, errors.KvError) as error:
        click.echo(f"kvmanager: {error}", err=True)
        return exit_code(error)
    return code if isinstance(code, int) else 0


def exit_code(error: Exception) -> int:
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
