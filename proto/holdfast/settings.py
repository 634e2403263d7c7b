"""Settings of a process: flags > HOLDFAST_* environment > YAML file > defaults. Unknown keys are errors.

Each process has one frozen pydantic model, a subclass of `Common`, and one section name. A field `max_num_seqs` of
the section `compute` is the flag `--max-num-seqs`, the variable `HOLDFAST_COMPUTE__MAX_NUM_SEQS` and, in the YAML
file, `compute: {max_num_seqs: …}`. The fields of `Common` have no section: `HOLDFAST_RUN_DIR`, top level in YAML.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from holdfast.rundir import RunDir, default_path

PREFIX: Final = "HOLDFAST_"
SECTIONS: Final = ("kvmanager", "compute", "gateway")
# Read by the command lines themselves, not by a section.
CLIENT_VARIABLES: Final = frozenset(
    {"HOLDFAST_CONFIG", "HOLDFAST_ENDPOINT", "HOLDFAST_OUTPUT", "HOLDFAST_API_KEY"}
)


class SettingsError(ValueError):
    """A setting is unknown or out of bounds; the message names it and where it came from."""


class Common(BaseModel):
    """What every process needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    run_dir: Path = Field(default_factory=default_path, description="folder of the service's unix sockets")
    log_format: Literal["auto", "pretty", "json"] = Field("auto", description="auto: pretty on a terminal")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")

    @property
    def sockets(self) -> RunDir:
        return RunDir(self.run_dir)


S = TypeVar("S", bound=Common)
COMMON: Final = frozenset(Common.model_fields)


def load(
    model: type[S], section: str, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> S:
    """The settings of one process. `flags` may hold `config` (a path) and None for flags not given."""
    given = {key: value for key, value in flags.items() if value is not None}
    path = given.pop("config", None) or environ.get("HOLDFAST_CONFIG")
    values = from_yaml(Path(path), model, section) if path else {}
    values |= from_environment(model, section, environ)
    try:
        return model.model_validate(values | given)
    except ValidationError as error:
        raise SettingsError(explain(error, section)) from None


def from_yaml(path: Path, model: type[Common], section: str) -> dict[str, Any]:
    """Top-level common keys and one section of the file. Other sections are theirs to judge."""
    try:
        document = yaml.safe_load(path.read_text("utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None
    top = mapping(document, str(path), COMMON | set(SECTIONS))
    own = mapping(top.get(section), f"{path}, section {section}", set(model.model_fields) - COMMON)
    return {key: value for key, value in top.items() if key in COMMON} | own


def mapping(value: Any, where: str, known: Set[str]) -> dict[str, Any]:
    """`value` as a mapping of known keys; nothing at all is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{where}: expected a mapping with the keys {', '.join(sorted(known))}")
    reject_unknown(value, known, where)
    return value


def from_environment(model: type[Common], section: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Values of this process's variables. Other sections' variables are theirs to judge."""
    common = {PREFIX + key.upper(): key for key in COMMON}
    own = {f"{PREFIX}{section.upper()}__{key.upper()}": key for key in set(model.model_fields) - COMMON}
    others = tuple(f"{PREFIX}{name.upper()}__" for name in SECTIONS if name != section)
    seen = [name for name in environ if name.startswith(PREFIX) and not name.startswith(others)]
    reject_unknown(seen, common.keys() | own.keys() | CLIENT_VARIABLES, "environment")
    return {key: environ[name] for name, key in (common | own).items() if name in environ}


def reject_unknown(seen: Iterable[Any], known: Set[str], where: str) -> None:
    """SettingsError for the first name that is not known, with the nearest one that is."""
    for name in seen:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"unknown setting {name} in {where}{hint}")


def explain(error: ValidationError, section: str) -> str:
    """One line per bad field, by the names its user may have typed: the flag and the key."""
    return "; ".join(fault(item["loc"], item, section) for item in error.errors())


def fault(place: tuple[int | str, ...], item: Mapping[str, Any], section: str) -> str:
    said = item["msg"].removeprefix("Value error, ")  # pydantic's mark of a validator of ours
    if not place:  # of several fields together: the message names them
        return f"{section}: {said}"
    key = ".".join(map(str, place))
    name = key if place[0] in COMMON else f"{section}.{key}"
    got = "" if item["type"] == "missing" else f", got {item['input']!r}"
    return f"--{key.replace('_', '-')} ({name}): {said}{got}"


def options(model: type[Common]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A click decorator: `--config` and one option per field. Values arrive as strings or None: `load` judges them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            command = option(
                name, field.annotation, field.description, field.get_default(call_default_factory=True)
            )(command)
        return click.option("--config", type=click.Path(dir_okay=False), help="YAML settings file")(command)

    return decorate


def option(name: str, kind: Any, about: str | None, default: Any) -> Callable[..., Any]:
    flag = "--" + name.replace("_", "-")
    text = about or ""
    if kind is bool:
        return click.option(
            f"{flag}/--no-{flag[2:]}", default=None, help=f"{text} [{'on' if default else 'off'}]"
        )
    shown = "" if default is None or str(default) == "PydanticUndefined" else f" [{default}]"
    return click.option(flag, default=None, metavar="|".join(choices(kind)) or "VALUE", help=text + shown)


def choices(kind: Any) -> tuple[str, ...]:
    """The allowed values of a Literal field; none of any other."""
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
