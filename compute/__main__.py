"""`compute` and `python -m compute`: the worker's command line. Exit code 0 done, 1 error, 2 usage."""

import os
import sys
from typing import Any, NoReturn

import click

from compute.config import ComputeSettings
from holdfast import __version__, logs, wire
from holdfast.rundir import RunDirError
from holdfast.settings import SettingsError, load, options

# How long torch's threads spin for each other before they sleep. The default, 15 ms, turns a core that somebody else
# needs for a moment into steps of seconds; none at all doubles a quiet step. 3000 is about 0.15 ms.
SPIN = "3000"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """A compute worker: runs a model over KV blocks that the kvmanager owns."""


@cli.command()
@options(ComputeSettings)
def serve(**flags: Any) -> None:
    """Serve one model until SIGTERM."""
    try:
        settings = load(ComputeSettings, "compute", flags)
    except SettingsError as error:
        fail(str(error), 2)
    logs.configure("compute", settings.log_format, settings.log_level)
    sys.exit(start(settings))


def start(settings: ComputeSettings) -> int:
    """Imports torch only now: `--help` need not wait for it. A user's error is one line."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    from compute.model.hf_config import ModelConfigError  # noqa: PLC0415
    from compute.serve import serve as serve_until_end  # noqa: PLC0415
    from compute.weights import WeightsError  # noqa: PLC0415
    from kvmanager.errors import KvError  # noqa: PLC0415

    try:
        return serve_until_end(settings)
    except KvError as error:
        fail(error.message, 1)
    except RunDirError as error:
        fail(str(error), 2)
    except (ModelConfigError, WeightsError, OSError) as error:
        fail(str(error), 1)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


@cli.command()
def version() -> None:
    """Print the version installed here."""
    click.echo(f"compute {__version__} (protocol {wire.VERSION})")


def main() -> None:
    cli(prog_name="compute")


if __name__ == "__main__":
    main()
