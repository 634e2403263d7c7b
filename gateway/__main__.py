"""The command `gateway`: serve, generate, version. Wires parts; decides nothing."""

import asyncio
import gc
import signal
import sys
from typing import Any

import click
import structlog

from gateway import cli
from gateway.auth import KeyFileError
from gateway.config import GatewaySettings
from gateway.server import Gateway, StartError
from holdfast import __version__, logs, settings, wire
from holdfast.rundir import RunDirError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The gRPC gateway of holdfast."""


@main.command()
@settings.options(GatewaySettings)
def serve(**flags: Any) -> None:
    """Serves GenerateService until SIGTERM."""
    try:
        found = settings.load(GatewaySettings, "gateway", flags)
        found.sockets.prepare()
    except (settings.SettingsError, RunDirError) as error:
        raise click.UsageError(str(error)) from None
    logs.configure("gateway", found.log_format, found.log_level)
    try:
        asyncio.run(run(found))
    except (StartError, KeyFileError, ValueError, OSError) as error:
        structlog.get_logger().error(str(error))
        sys.exit(1)


async def run(found: GatewaySettings) -> None:
    """From start to the end of the last stream after SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    gateway = Gateway(found)
    try:
        await gateway.start()
        gc.freeze()  # modules and tokenizer stay: no collection needs to walk them again
        waits = asyncio.create_task(stopping.wait()), asyncio.create_task(gateway.broken())
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises if the gateway broke
    finally:
        await gateway.stop()


@main.command()
def version() -> None:
    """Prints the version installed here."""
    click.echo(f"gateway {__version__} (protocol {wire.VERSION})")


main.add_command(cli.generate)

if __name__ == "__main__":
    main(prog_name="gateway")
