"""docs/cli.md shows commands that exist, with flags that exist, and output that looks as it does today."""

import re
import shlex
from pathlib import Path

import click
import pytest

from holdfast.v1 import kvmanager_pb2 as pb
from kvmanager.cli import EXIT_CODES, INTERRUPTED, VERBS, kvmanager
from kvmanager.commands.kinds import KINDS

TEXT = (Path(__file__).parent.parent / "docs" / "cli.md").read_text("utf8")
COMMANDS = sorted(set(re.findall(r"^\$ kvmanager (.+)$", TEXT, re.MULTILINE)))


def parsed(line):
    """The click context of a command line; raises click's own error for one that the grammar does not know."""
    verb, *rest = shlex.split(line)
    command = kvmanager.get_command(click.Context(kvmanager), verb)
    assert command is not None, f"no verb {verb}"
    return command.make_context(verb, rest)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_is_one(line):
    parsed(line)


def test_a_command_that_is_none_would_be_noticed():
    with pytest.raises(click.UsageError):
        parsed("get workers --no-heads")
    with pytest.raises(AssertionError):
        parsed("frobnicate")


def test_every_verb_is_shown_and_no_other():
    sections = set(re.findall(r"^\| \[`(\w+)`\]", TEXT, re.MULTILINE))
    assert sections == set(VERBS)
    assert {line.split()[0] for line in COMMANDS} == set(VERBS)


def test_every_flag_that_is_named_exists():
    known = {"--help"}
    for verb in VERBS:
        command = kvmanager.get_command(click.Context(kvmanager), verb)
        known |= {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known


def test_every_exit_code_is_explained():
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    assert explained == {0, 1, INTERRUPTED} | {code for _, code in EXIT_CODES}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_tables_shown_have_today_s_columns(kind):
    headers = " +".join(re.escape(column.title) for column in kind.columns)
    assert re.search(rf"^{headers}$", TEXT, re.MULTILINE)


def test_the_json_shown_has_today_s_fields():
    tier = re.search(r'"kind": "tier",(.*?)\}', TEXT, re.DOTALL)[1]
    assert re.findall(r'"(\w+)":', tier) == [field.name for field in pb.TierInfo.DESCRIPTOR.fields]
