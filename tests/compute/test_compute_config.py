"""Settings of `compute serve`: bounds, names and the one-line errors of its command line."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from compute import device
from compute.__main__ import cli
from compute.config import ComputeSettings
from holdfast.settings import SettingsError, load


def settings(tmp_path: Path, environ: dict[str, str] | None = None, **flags: object) -> ComputeSettings:
    return load(ComputeSettings, "compute", {"model": str(tmp_path)} | flags, environ or {})


def test_defaults_need_a_model_folder_only(tmp_path: Path) -> None:
    """The served name is the folder's."""
    found = settings(tmp_path)
    assert (found.block_size, found.max_num_seqs, found.max_num_batched_tokens) == (16, 64, 2048)
    assert found.model_name == tmp_path.name
    assert settings(tmp_path, served_model_name="story").model_name == "story"


def test_the_environment_speaks_with_the_sections_name(tmp_path: Path) -> None:
    """HOLDFAST_COMPUTE__MAX_NUM_SEQS, and flags win over it."""
    environ = {"HOLDFAST_COMPUTE__MAX_NUM_SEQS": "3"}
    assert settings(tmp_path, environ).max_num_seqs == 3
    assert settings(tmp_path, environ, max_num_seqs="5").max_num_seqs == 5


def test_the_prefix_cache_is_on_unless_it_is_turned_off(tmp_path: Path) -> None:
    assert settings(tmp_path).enable_prefix_caching
    environ = {"HOLDFAST_COMPUTE__ENABLE_PREFIX_CACHING": "false"}
    assert not settings(tmp_path, environ).enable_prefix_caching
    assert not settings(tmp_path, enable_prefix_caching=False).enable_prefix_caching


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", "12"),
        ("block_size", "2048"),
        ("max_num_seqs", "0"),
        ("max_num_batched_tokens", "0"),
        ("max_model_len", "1"),
        ("enable_prefix_caching", "perhaps"),
        ("threads", "0"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("worker_id", "Not OK"),
        ("shutdown_grace", "-1"),
        ("model", "/does/not/exist"),
    ],
)
def test_a_value_out_of_bounds_is_named(tmp_path: Path, field: str, value: str) -> None:
    """The error says which flag."""
    with pytest.raises(SettingsError, match=f"--{field.replace('_', '-')}"):
        settings(tmp_path, **{field: value})


def test_another_dtype_for_the_cache_is_refused(tmp_path: Path) -> None:
    """Keys and values have the model's dtype."""
    with pytest.raises(SettingsError, match="kv-cache-dtype"):
        settings(tmp_path, dtype="float32", kv_cache_dtype="float16")
    assert settings(tmp_path, dtype="float32", kv_cache_dtype="float32").kv_cache_dtype == "float32"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_an_fp8_cache_is_a_gpu_s(tmp_path: Path, device: str) -> None:
    with pytest.raises(SettingsError, match="--kv-cache-dtype fp8 needs --device cuda"):
        settings(tmp_path, device=device, kv_cache_dtype="fp8")
    found = settings(tmp_path, device="cuda", dtype="bfloat16", kv_cache_dtype="fp8")
    assert found.kv_dtype("bfloat16") == "float8_e4m3"
    assert settings(tmp_path, device="cuda").kv_dtype("bfloat16") == "bfloat16"


def test_a_usage_error_is_one_line_and_code_2(tmp_path: Path) -> None:
    """No traceback for what the user can mend."""
    result = CliRunner().invoke(cli, ["serve", "--model", str(tmp_path), "--max-num-seqs", "none"], env={})
    assert result.exit_code == 2
    assert result.output.startswith("error: --max-num-seqs")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "cuda"], "this machine has no NVIDIA GPU"), ([], "config.json")],
)
def test_what_cannot_be_served_is_one_line_and_code_1(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is not there, and a folder that holds no model."""
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    run_dir = tmp_path / "run"
    command = ["serve", "--model", str(tmp_path), "--run-dir", str(run_dir), *arguments]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
