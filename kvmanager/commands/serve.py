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

MODULE = (sys.executable, "-m")


@click.command()
@settings.options(KvManagerSettings)
@click.pass_obj
def serve(before: Mapping[str, Any] | None, /, **flags: Any) -> int:
    """Run the KV manager until Ctrl-C or SIGTERM: a keeper that holds the memory, and its daemon.

    With --keeper SOCKET only the daemon, beside a keeper that runs elsewhere.
    """
    given = merged(before, flags)
    chosen = load(given)
    if chosen.keeper is None:
        start_keeper(chosen, daemon_command(chosen, given))
    from kvmanager import daemon  # noqa: PLC0415 - numpy and the whole of the state, for this verb alone

    return daemon.run(chosen)


@click.command()
@settings.options(settings.Common)
@click.pass_obj
def keeper(before: Mapping[str, Any] | None, /, **flags: Any) -> None:
    """Run the keeper alone: it holds the memory for a `kvmanager serve --keeper SOCKET` beside it."""
    start_keeper(load(merged(before, flags)), ())


def merged(before: Mapping[str, Any] | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags after the verb win over the ones before it."""
    early = {key: value for key, value in (before or {}).items() if key in ("config", "run_dir")}
    return early | {key: value for key, value in flags.items() if value is not None}


def load(given: Mapping[str, Any]) -> KvManagerSettings:
    chosen = settings.load(KvManagerSettings, "kvmanager", given)
    chosen.sockets.prepare()
    return chosen


def daemon_command(chosen: KvManagerSettings, given: Mapping[str, Any]) -> Sequence[str]:
    """How the keeper starts its daemon: the same flags, and where the keeper is. The environment is inherited."""
    flags = dict(given) | {"keeper": chosen.sockets.keeper, "run_dir": chosen.run_dir}
    options = (f"--{name.replace('_', '-')}={value}" for name, value in flags.items())
    return *MODULE, "kvmanager", "serve", *options


def start_keeper(chosen: KvManagerSettings, child: Sequence[str]) -> None:
    arguments = (str(chosen.run_dir), chosen.log_format, chosen.log_level, *child)
    os.execv(sys.executable, (*MODULE, "kvmanager.keeper", *arguments))  # noqa: S606 - there is no shell to want
