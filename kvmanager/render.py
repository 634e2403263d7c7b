"""Printers: tables, field lists and JSON, and the units people read. No idea of what is printed, nor of the daemon.

On a terminal a table is drawn by rich (which honours NO_COLOR); in a pipe it is aligned columns of plain text, so
that cut, awk and grep work on it. Names that came from outside lose their control characters in both.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import click

GAP: Final = "  "
MIB: Final = 2**20
MAX_WIDTH: Final = 10_000  # of a drawn table, in characters

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a table; numbers stand to the right."""

    title: str
    cell: Callable[[Row], str]
    right: bool = False


def emit(text: str) -> None:
    """Text to stdout. A reader that has gone (`| head`) has what it wanted: no error."""
    try:
        click.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """A remark for the person, on stderr."""
    click.echo(text, err=True)


def emit_json(value: dict[str, Any]) -> None:
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def emit_table(columns: Sequence[Column[Row]], rows: Iterable[Row], *, headers: bool = True) -> None:
    """One table, for a person or for a pipe as stdout is."""
    cells = [[printable(column.cell(row)) for column in columns] for row in rows]
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        emit_rich(columns, cells, headers=headers)
    else:
        emit("\n".join(aligned(columns, cells, headers=headers)))


def aligned(
    columns: Sequence[Column[Row]], cells: Sequence[Sequence[str]], *, headers: bool = True
) -> list[str]:
    """Lines of plain text, columns two spaces apart, no trailing space."""
    lines = [[column.title for column in columns], *cells] if headers else list(cells)
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(columns))]
    return [GAP.join(map(pad, columns, line, widths)).rstrip() for line in lines]


def pad(column: Column[Row], text: str, width: int) -> str:
    return text.rjust(width) if column.right else text.ljust(width)


def emit_rich(columns: Sequence[Column[Row]], cells: Sequence[Sequence[str]], *, headers: bool) -> None:
    from rich import box  # noqa: PLC0415 - 60 ms, wanted on a terminal only
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, show_header=headers, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for line in cells:
        table.add_row(*map(Text, line))
    console = Console(file=sys.stdout, highlight=False)
    if console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum <= console.width:
        console.print(table)
    else:  # too narrow to draw: whole cells that the terminal wraps say more than shortened ones
        emit("\n".join(aligned(columns, cells, headers=headers)))


def fields(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """`name  value` lines, values aligned."""
    known = [(name, printable(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0)
    return [f"{name.ljust(width)}{GAP}{value}".rstrip() for name, value in known]


def printable(text: str) -> str:
    """The text without characters that move a terminal's cursor or break a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


# ---------------------------------------------------------------------------------------------- units


def mib(size: float) -> str:
    """Bytes as MiB, or GiB from 10 GiB on."""
    return f"{size / MIB:.1f} MiB" if size < 10240 * MIB else f"{size / MIB / 1024:.1f} GiB"


def percent(part: float, whole: float) -> str:
    """Share of a whole; `-` of nothing."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def age(seconds: float) -> str:
    """A span as its two largest units: 0.4s, 12s, 3m12s, 2h05m, 4d03h."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = int(seconds)
    for unit, smaller, size, part in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{smaller}"
    return f"{whole}s"
