"""The daemon as its keeper starts it: everything is imported first, then it waits for its turn.

`python -m kvmanager.standby --name=value …`, every setting as `serve` judged it. One byte on standard input is the
turn, and says how many daemons before this one crashed fast, in a row. The end of the input: the keeper is gone.
"""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import click

from holdfast import settings
from kvmanager import daemon
from kvmanager.config import KvManagerSettings
from kvmanager.gpu_pools import MODULE

STDIN: Final = 0
EXIT_USAGE: Final = 2


def main(argv: Sequence[str], allocator: str = MODULE) -> int:
    """The daemon's exit code; 0 without a turn. `allocator` as for `daemon.run`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's, which passes it on
    try:
        chosen = load(argv)
    except settings.SettingsError as error:
        click.echo(f"kvmanager: {error}", err=True)
        return EXIT_USAGE
    fast_crashes = turn()
    return 0 if fast_crashes is None else daemon.run(chosen, allocator, fast_crashes)


def load(argv: Sequence[str]) -> KvManagerSettings:
    """SettingsError for anything but --name=value of known settings."""
    pairs = [argument.removeprefix("--").partition("=") for argument in argv]
    flags = {name.replace("-", "_"): value for name, _, value in pairs}
    return settings.load(KvManagerSettings, "kvmanager", flags)


def turn() -> int | None:
    """Waits for it: the daemons before that crashed fast, in a row. None: there will be none."""
    gc.collect()
    gc.freeze()  # what was imported stays: the wait costs its memory once
    told = os.read(STDIN, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, STDIN)
    os.close(nothing)
    return told[0] if told else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
