"""Printers: aligned and bare in a pipe, drawn on a terminal, harmless whatever a name holds."""

import json
import os
import pty
import subprocess
import sys

import pytest

from kvmanager.render import Column, age, aligned, emit_json, emit_table, fields, mib, percent, printable

COLUMNS = (Column("NAME", lambda row: row[0]), Column("SIZE", lambda row: row[1], right=True))
ROWS = [("a", "1"), ("longer", "12345")]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (12, "12s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (192, "3m12s"),
        (7500, "2h05m"),
        (99 * 3600, "4d03h"),
    ],
)
def test_an_age_is_its_two_largest_units(seconds, shown):
    assert age(seconds) == shown


def test_sizes_are_mebibytes_until_ten_gibibytes():
    assert [mib(0), mib(1536 * 1024), mib(2**30), mib(10 * 2**30)] == [
        "0.0 MiB",
        "1.5 MiB",
        "1024.0 MiB",
        "10.0 GiB",
    ]


def test_a_share_of_nothing_is_a_dash():
    assert [percent(1, 3), percent(0, 5), percent(0, 0)] == ["33.3%", "0.0%", "-"]


def test_plain_columns_line_up_and_numbers_stand_to_the_right():
    assert aligned(COLUMNS, ROWS) == ["NAME     SIZE", "a           1", "longer  12345"]


def test_without_headers_there_are_only_rows():
    assert aligned(COLUMNS, ROWS, headers=False) == ["a           1", "longer  12345"]


def test_fields_align_their_values():
    assert fields((("Id", "1"), ("Longer", "2"), ("None", ""))) == ["Id      1", "Longer  2", "None"]


def test_control_characters_are_shown_as_question_marks():
    assert printable("a\x1b[31m\nb\u202e") == "a?[31m?b?"
    assert printable("Ü–漢") == "Ü–漢"


def test_a_table_in_a_pipe_is_plain_text(capsys):
    emit_table(COLUMNS, [("\x1b[1mbold", "1")])
    assert capsys.readouterr().out == "NAME      SIZE\n?[1mbold     1\n"


def test_json_keeps_its_order_and_its_letters(capsys):
    emit_json({"b": "Ü", "a": [1]})
    out = capsys.readouterr().out
    assert list(json.loads(out)) == ["b", "a"]
    assert "Ü" in out


PROGRAM = """
from kvmanager.render import Column, emit_table
emit_table((Column("NAME", str),), ["[bold]x[/bold]"])
"""


def on_terminal(**environ):
    """What PROGRAM writes to a terminal."""
    ours, theirs = pty.openpty()
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM", "FORCE_COLOR")}
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=theirs,
        env=base | {"TERM": "xterm-256color", "COLUMNS": "80"} | environ,
        check=True,
        timeout=60,
    )
    shown = os.read(ours, 65536).decode()  # before the other end closes: what is unread goes with it
    os.close(theirs)
    os.close(ours)
    return shown


def test_a_terminal_gets_a_drawn_table_and_names_are_no_markup():
    shown = on_terminal()
    assert "\x1b[1m" in shown
    assert "─" in shown
    assert "[bold]x[/bold]" in shown


def test_no_color_and_a_dumb_terminal_take_colours_and_boxes_away():
    assert "\x1b[3" not in on_terminal(NO_COLOR="1")
    assert on_terminal(TERM="dumb").split() == ["NAME", "[bold]x[/bold]"]


def test_a_terminal_too_narrow_gets_whole_cells_undrawn():
    assert on_terminal(COLUMNS="8").split() == ["NAME", "[bold]x[/bold]"]


def test_a_reader_that_leaves_early_is_no_error():
    program = "from kvmanager.render import emit\nfor _ in range(20000): emit('x' * 100)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == 0
