"""holdfast.settings: where a value comes from, which one wins, and what a mistake is told."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import ByteSize, Field, model_validator

from compute.config import ComputeSettings
from holdfast.rundir import RunDir, default_path
from holdfast.settings import Common, SettingsError, load, options


class Sample(Common):
    """A process's settings as the real ones are: plain, bounded, sized, boolean and required fields."""

    model: str = Field(description="folder of the model")
    port: int = Field(50051, ge=1, le=65535, description="where to listen")
    memory: ByteSize = Field(ByteSize(2**20), description="how much")
    cache: bool = Field(True, description="reuse")
    reserve: int = 0

    @model_validator(mode="after")
    def reserve_below_port(self):
        if self.reserve > self.port:
            raise ValueError("reserve must not be above port")
        return self


def settle(environ=None, **flags):
    return load(Sample, "compute", {"model": "m", **flags}, environ or {})


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "holdfast.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# ------------------------------------------------------------------------------------------ precedence


def test_flags_beat_environment_beats_yaml_beats_defaults(write):
    path = write("compute: {port: 3, memory: 3KiB, reserve: 1}")
    environ = {"HOLDFAST_COMPUTE__PORT": "2", "HOLDFAST_COMPUTE__MEMORY": "2KiB"}
    found = settle(environ, config=path, port="1")
    assert (found.port, found.memory, found.reserve, found.cache) == (1, 2048, 1, True)


def test_common_keys_have_the_same_order_of_precedence(write):
    path = write("run_dir: /yaml\nlog_level: error\nlog_format: json")
    found = settle({"HOLDFAST_RUN_DIR": "/env", "HOLDFAST_LOG_LEVEL": "debug"}, config=path, run_dir="/flag")
    assert (found.run_dir, found.log_level, found.log_format) == (Path("/flag"), "debug", "json")
    assert found.sockets == RunDir(Path("/flag"))


def test_a_flag_not_given_is_none_and_hides_nothing():
    assert settle({"HOLDFAST_COMPUTE__PORT": "2"}, port=None, cache=None).port == 2


def test_a_false_flag_is_given():
    assert settle({"HOLDFAST_COMPUTE__CACHE": "true"}, cache=False).cache is False


def test_the_flag_names_the_file_before_the_variable(write, tmp_path):
    path = write("compute: {port: 3}")
    assert settle({"HOLDFAST_CONFIG": path}).port == 3
    assert settle({"HOLDFAST_CONFIG": str(tmp_path / "absent")}, config=path).port == 3


def test_defaults_need_nothing():
    found = settle()
    assert (found.port, found.memory, found.run_dir, found.log_format) == (
        50051,
        2**20,
        default_path(),
        "auto",
    )


@pytest.mark.parametrize("text", ["", "# nothing", "compute:", "compute: {}", "gateway: {anything: 1}"])
def test_what_a_file_leaves_out_stays_at_its_default(write, text):
    assert settle(config=write(text)) == settle()


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        settle().port = 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MiB", 2**28), ("1GiB", 2**30), ("1.5 KiB", 1536), ("1GB", 10**9), ("17", 17), ("8b", 8)],
)
def test_sizes_are_read_with_their_units_from_anywhere(write, text, size):
    assert settle(memory=text).memory == size
    assert settle({"HOLDFAST_COMPUTE__MEMORY": text}).memory == size
    assert settle(config=write(f"compute: {{memory: {text}}}")).memory == size


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comptue: {}", "unknown setting comptue in .*; did you mean compute?"),
        ("log_levle: info", "unknown setting log_levle in .*; did you mean log_level?"),
        ("compute: {prot: 1}", "unknown setting prot in .*section compute; did you mean port?"),
        ("compute: {zzz: 1}", "unknown setting zzz in .*section compute$"),
        ("compute: {run_dir: /x}", "unknown setting run_dir in .*section compute"),
        ("1: 2", "unknown setting 1 in"),
        ("- a", "expected a mapping with the keys compute, gateway, kvmanager, log_format"),
        ("7", "expected a mapping"),
        ("compute: [1]", "section compute: expected a mapping with the keys cache, memory"),
        ("compute: x", "section compute: expected a mapping"),
        ("a: [", "cannot read"),
        ("!!python/object/apply:os.getcwd []", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
    ids=str,
)
def test_a_mistake_in_the_file_is_named(write, text, message):
    with pytest.raises(SettingsError, match=message):
        settle(config=write(text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read .*absent.yaml: .*No such file"):
        settle(config=str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HOLDFAST_COMPUTE__PROT", "HOLDFAST_COMPUTE__PORT"),
        ("HOLDFAST_RUNDIR", "HOLDFAST_RUN_DIR"),
        ("HOLDFAST_COMPUTE__RUN_DIR", ""),
        ("HOLDFAST_COMPTE__PORT", "HOLDFAST_COMPUTE__PORT"),
        ("HOLDFAST_PORT", ""),
    ],
)
def test_an_unknown_variable_is_an_error_with_a_hint(name, hint):
    with pytest.raises(SettingsError, match=f"unknown setting {name} in environment.*{hint}"):
        settle({name: "1"})


def test_variables_of_others_are_left_alone():
    others = {
        "HOLDFAST_GATEWAY__PORT": "x",
        "HOLDFAST_KVMANAGER__KV_MEMORY": "y",
        "HOLDFAST_OUTPUT": "json",
        "PORT": "z",
    }
    assert settle(others) == settle()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"port": "0"}, r"--port \(compute.port\): .*greater than or equal to 1, got '0'"),
        ({"port": "many"}, r"--port \(compute.port\): .*integer.*, got 'many'"),
        ({"memory": "256XB"}, r"--memory \(compute.memory\): .*, got '256XB'"),
        ({"log_level": "loud"}, r"--log-level \(log_level\): .*'debug', 'info', .*, got 'loud'"),
        ({"reserve": "60000"}, "^compute: reserve must not be above port$"),
        ({"colour": "red"}, r"--colour \(compute.colour\): "),
    ],
    ids=str,
)
def test_a_bad_value_is_told_by_flag_and_key_with_its_bound(flags, message):
    with pytest.raises(SettingsError, match=message):
        settle(**flags)


def test_a_fault_found_by_our_own_judge_is_told_in_our_words_alone(tmp_path):
    with pytest.raises(
        SettingsError, match=r"^--model \(compute.model\): expected a folder, got '/nowhere'$"
    ):
        load(ComputeSettings, "compute", {"model": "/nowhere"}, {})


def test_a_missing_value_is_told_without_the_others():
    with pytest.raises(SettingsError, match=r"^--model \(compute.model\): Field required$"):
        load(Sample, "compute", {"port": "7"}, {})


def test_every_bad_value_is_told_at_once():
    with pytest.raises(SettingsError, match=r"--port .*; --memory "):
        settle(port="0", memory="x")


# ------------------------------------------------------------------------------------------------ options


@click.command()
@options(Sample)
def command(**flags):
    click.echo(repr(load(Sample, "compute", flags, {})))


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_every_field_is_an_option_with_its_default_in_the_help():
    text = run("--help").output
    for name in (
        "--run-dir",
        "--log-format",
        "--log-level",
        "--model",
        "--port",
        "--memory",
        "--reserve",
        "--config",
    ):
        assert name in text
    assert "[50051]" in text
    assert "--cache / --no-cache" in text


def test_the_help_shows_the_values_that_a_setting_allows():
    text = run("--help").output
    assert "--log-level debug|info|warning|error" in text
    assert "--log-format auto|pretty|json" in text
    assert "--port VALUE" in text


def test_options_reach_the_settings():
    done = run("--model", "m", "--port", "9", "--no-cache", "--memory", "2KiB")
    assert "port=9" in done.output
    assert "cache=False" in done.output
    assert "memory=2048" in done.output


def test_options_not_given_leave_the_file_its_word(write):
    assert "cache=False" in run("--model", "m", "--config", write("compute: {cache: false}")).output


def test_an_unknown_option_is_a_usage_error():
    assert run("--prot", "9").exit_code == 2
