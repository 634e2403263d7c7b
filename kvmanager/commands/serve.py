"""Verbs that start processes: serve (the keeper with its daemon, or the daemon alone) and keeper.

The settings are judged here, before anything starts. The keeper then takes this process over by exec, so that what
holds the memory has loaded neither this command line nor ZeroMQ; its pid is the one that was started.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from holdfast import settings
from kvmanager.config import KvManagerSettings
from kvmanager.interpreter import python
from kvmanager.keeper import SPARE


@click.command()
@settings.options(KvManagerSettings)
@click.pass_obj
def serve(before: Mapping[str, Any] | None, /, **flags: Any) -> int:
    """Run the KV manager: keeper and daemon.

    Until Ctrl-C or SIGTERM. The keeper holds the memory and starts the daemon again when it dies.

    With --keeper SOCKET only the daemon, beside a keeper that runs elsewhere.
    """
    chosen = load(before, flags)
    if chosen.keeper is None:
        start_keeper(chosen, daemon_command(chosen), spare=chosen.spare_daemon)
    from kvmanager import daemon  # noqa: PLC0415 - numpy and the whole of the state, for this process alone

    return daemon.run(chosen)


@click.command()
@settings.options(settings.Common)
@click.pass_obj
def keeper(before: Mapping[str, Any] | None, /, **flags: Any) -> None:
    """Run the keeper alone.

    It holds the memory for a `kvmanager serve --keeper SOCKET` beside it.
    """
    start_keeper(load(before, flags), ())


def load(before: Mapping[str, Any] | None, flags: Mapping[str, Any]) -> KvManagerSettings:
    """Flags after the verb win over the ones before it."""
    early = {key: value for key, value in (before or {}).items() if key in ("config", "run_dir")}
    given = {key: value for key, value in flags.items() if value is not None}
    chosen = settings.load(KvManagerSettings, "kvmanager", early | given)
    chosen.sockets.prepare()
    return chosen


def daemon_command(chosen: KvManagerSettings) -> Sequence[str]:
    """How the keeper starts its daemon, with every setting as it was judged here."""
    values = chosen.model_dump(exclude_none=True) | {"keeper": chosen.sockets.keeper}
    options = (f"--{name.replace('_', '-')}={value}" for name, value in values.items())
    return *python(), "kvmanager.standby", *options


def start_keeper(chosen: KvManagerSettings, child: Sequence[str], *, spare: bool = False) -> None:
    """Becomes the keeper; `child` is its daemon's command, and the spare's if there is to be one."""
    arguments = (str(chosen.run_dir), chosen.log_format, chosen.log_level, *child)
    command = (*python(), "kvmanager.keeper", *([SPARE] if spare else []), *arguments)
    os.execv(sys.executable, command)  # noqa: S606 - there is no shell to want
