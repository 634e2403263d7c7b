"""The command line's grammar and settings: what it takes, what it refuses, where a value may come from."""

import contextlib
import json
import os

import pytest

from kvmanager.cli import run
from tests.kvmanager.served import Service, kvmanager


@pytest.fixture(scope="module")
def service():
    with contextlib.closing(Service()) as service:
        yield service


# ---------------------------------------------------------------------------------------------- grammar


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "No such command"),
        (["top"], "No such command"),
        (["status", "--frob"], "No such option"),
        (["get"], "Missing argument"),
        (["get", "blobs"], "unknown kind 'blobs'"),
        (["get", "blocks,events"], "unknown kind 'events'"),
        (["get", "blocks", "--state", "lost"], "'lost' is not one of"),
        (["get", "workers", "--state", "free"], "--state is for blocks"),
        (["describe", "block"], "Missing argument"),
        (["describe", "tier", "device"], "unknown kind 'tier'"),
        (["evict", "--yes"], "Missing option '--count'"),
        (["evict", "--count", "0", "--yes"], "0 is not in the range"),
        (["status", "-o", "yaml"], "'yaml' is not one of"),
        (["status", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["status", "--timeout", "0"], "'0' is not a number of seconds"),
        (["flush"], "--yes"),
        (["evict", "--count", "1"], "--yes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_grammar_does_not_know_is_usage(args, says, capsys):
    assert run(args) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert not shown.out


def test_help_lists_the_verbs_and_each_has_its_own(capsys):
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    verbs = (
        "serve",
        "keeper",
        "status",
        "health",
        "get",
        "describe",
        "fsck",
        "flush",
        "evict",
        "drain",
        "undrain",
        "version",
    )
    assert all(f"\n  {verb} " in shown for verb in verbs)
    for verb in verbs:
        assert run([verb, "--help"]) == 0
        assert f"Usage: kvmanager {verb} [OPTIONS]" in capsys.readouterr().out


def test_the_program_s_exit_code_is_the_command_s():
    assert "No such command" in kvmanager("frobnicate", check=2).stderr
    assert "Usage: kvmanager" in kvmanager(check=2).stderr


def test_version_asks_nobody():
    assert kvmanager("version", check=0).stdout.startswith("kvmanager 0.")
    assert json.loads(kvmanager("version", check=0, HOLDFAST_OUTPUT="json").stdout)["protocol"] == 1


# ---------------------------------------------------------------------------------------------- settings


def test_an_unknown_variable_is_usage_and_named_with_the_nearest_known_one():
    done = kvmanager("status", check=2, HOLDFAST_RUN_DIRR="/nowhere")
    assert "HOLDFAST_RUN_DIRR" in done.stderr
    assert "did you mean HOLDFAST_RUN_DIR" in done.stderr


def test_a_bad_output_variable_is_usage(tmp_path):
    done = kvmanager("status", "--run-dir", str(tmp_path), check=2, HOLDFAST_OUTPUT="yaml")
    assert "HOLDFAST_OUTPUT" in done.stderr


def test_a_run_directory_too_long_for_a_socket_is_usage():
    assert "107 bytes" in kvmanager("status", "--run-dir", "/tmp/" + "x" * 120, check=2).stderr


def test_options_stand_before_or_after_the_verb_or_in_the_environment(service):
    where = str(service.path)
    for args, environ in (
        (["--run-dir", where, "-o", "json", "status"], {}),
        (["status", "--run-dir", where, "-o", "json"], {}),
        (["-o", "table", "status", "-o", "json"], {"HOLDFAST_RUN_DIR": where}),
        (["status"], {"HOLDFAST_RUN_DIR": where, "HOLDFAST_OUTPUT": "json"}),
    ):
        assert json.loads(kvmanager(*args, check=0, **environ).stdout)["run_dir"] == where


def test_a_settings_file_names_the_run_directory(service, tmp_path):
    file = tmp_path / "holdfast.yaml"
    file.write_text(f"run_dir: {service.path}\n")
    assert kvmanager("health", "--config", str(file), check=0).stdout == "SERVING\n"
    file.write_text("run_dirr: x\n")
    assert "did you mean run_dir" in kvmanager("health", "--config", str(file), check=2).stderr
