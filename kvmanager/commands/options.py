"""Options that every verb has, before or after the verb, and the command's view of them.

Flags win over HOLDFAST_* variables and these over defaults. A variable nobody knows is an error here as it is for
the daemon, so that a misspelt name does not silently ask another service.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from google.protobuf.message import Message

from holdfast import settings
from kvmanager.client_calls import AdminClient
from kvmanager.config import KvManagerSettings

FORMATS: Final = ("table", "json")
DEFAULT_TIMEOUT: Final = 5.0  # seconds
MAX_TIMEOUT: Final = 3600.0

Function = TypeVar("Function", bound=Callable[..., Any])


class Seconds(click.ParamType[float]):
    """A finite number of seconds, over 0 and at most an hour."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_TIMEOUT:
            self.fail(f"{value!r} is not a number of seconds in (0, {MAX_TIMEOUT:.0f}]", param, ctx)
        return seconds


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keeps a given flag where the verb and what stands before it share it; the later one wins."""
    if value not in (None, False):
        ctx.ensure_object(dict)[param.name] = value


SHARED: Final = (
    click.option(
        "--run-dir",
        type=click.Path(path_type=Path),
        help="Folder of the service's sockets [HOLDFAST_RUN_DIR].",
        callback=remember,
        expose_value=False,
    ),
    click.option(
        "--config",
        type=click.Path(dir_okay=False),
        help="YAML settings file [HOLDFAST_CONFIG].",
        callback=remember,
        expose_value=False,
    ),
    click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        help="Format of stdout [HOLDFAST_OUTPUT, table].",
        callback=remember,
        expose_value=False,
    ),
    click.option(
        "--timeout",
        type=Seconds(),
        help=f"Longest wait for the daemon, in seconds [{DEFAULT_TIMEOUT:g}].",
        callback=remember,
        expose_value=False,
    ),
    click.option(
        "--no-headers",
        is_flag=True,
        help="Tables without their first line.",
        callback=remember,
        expose_value=False,
    ),
)


def shared(command: Function) -> Function:
    """Adds the options of SHARED."""
    for option in reversed(SHARED):
        command = option(command)
    return command


class Invocation:
    """One command's flags and environment. Settings are read, and the daemon called, when first asked for."""

    def __init__(self, flags: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> None:
        self._flags = flags or {}
        self._environ = environ
        output = self._flags.get("output") or environ.get("HOLDFAST_OUTPUT", "table")
        if output not in FORMATS:
            raise click.UsageError(f"HOLDFAST_OUTPUT is {output!r}, expected one of {', '.join(FORMATS)}")
        self.as_json = output == "json"

    @cached_property
    def settings(self) -> KvManagerSettings:
        places = {key: self._flags.get(key) for key in ("config", "run_dir")}
        return settings.load(KvManagerSettings, "kvmanager", places, self._environ)

    @property
    def headers(self) -> bool:
        return not self._flags.get("no_headers", False)

    def ask(self, request: Message) -> Any:
        """The daemon's reply to one admin message. Raises KvError and its classes."""
        return self._client.request(request)

    @cached_property
    def _client(self) -> AdminClient:
        client = AdminClient(self.settings.sockets, self._flags.get("timeout", DEFAULT_TIMEOUT))
        click.get_current_context().call_on_close(client.close)
        return client


def verb(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command function the shared options and, as its first argument, its Invocation."""

    @shared
    @click.pass_obj
    @wraps(function)
    def command(flags: Mapping[str, Any] | None, *args: Any, **kwargs: Any) -> Any:
        return function(Invocation(flags), *args, **kwargs)

    return command
