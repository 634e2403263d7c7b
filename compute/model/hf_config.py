"""Reading config.json: typed and bounded look-ups, and its two many-shaped parts, windows and rotations.

Everything read here is someone else's input: a value that is missing, unknown or out of bounds is a
ModelConfigError that names the key.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compute.model.families import Family

MAX_JSON_BYTES: Final = 16 * 2**20
ROPE_KINDS: Final = ("default", "linear", "llama3", "yarn")


class ModelConfigError(ValueError):
    """The folder's model cannot be served; the message names the key and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """One rotary embedding. Fields beyond `theta` matter to the kinds that use them."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_max: int = 0  # tokens the model was first trained with
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


class Reader:
    """Typed, bounded look-ups of one JSON object. Missing without a default, mistyped or out of bounds raises."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelConfigError(f"config.json has no {self.where}{key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ModelConfigError(f"{self.where}{key} must be a number in {low}..{high}, got {value!r}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.number(key, low, high, default)
        if int(value) != value:
            raise ModelConfigError(f"{self.where}{key} must be a whole number, got {value!r}")
        return int(value)

    def optional(self, key: str, low: float, high: float) -> float | None:
        return None if self.values.get(key) is None else self.number(key, low, high)

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelConfigError(f"{self.where}{key} must be true or false, got {value!r}")
        return value


def mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    if not isinstance(found, Mapping):
        raise ModelConfigError(f"{key} must be an object, got {found!r}")
    return found


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelConfigError(message)


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelConfigError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        document = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise ModelConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(document, dict):
        raise ModelConfigError(f"{path} must hold one JSON object")
    return document


def windows_of(family: Family, read: "Reader", layers: int) -> tuple[int | None, ...]:
    """Each layer's window, from layer_types where given, else from the family's older keys."""
    on = family.windows != "none" and read.values.get("sliding_window") is not None
    if family.windows == "optional":
        on = on and read.boolean("use_sliding_window", default=False)
    require(
        not read.values.get("use_bidirectional_attention"),
        "use_bidirectional_attention is not supported: text is generated from left to right",
    )
    types = read.values.get("layer_types")
    if types is None:
        types = _default_layer_types(family, read, layers)
    require(
        isinstance(types, Sequence)
        and len(types) == layers
        and set(types) <= {"sliding_attention", "full_attention"},
        f"layer_types must hold {layers} of sliding_attention, full_attention",
    )
    require(
        on or "sliding_attention" not in types or family.windows == "optional", "sliding_window is missing"
    )
    window = read.integer("sliding_window", 1, 2**24) if on else None
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _default_layer_types(family: Family, read: "Reader", layers: int) -> list[str]:
    if family.windows == "pattern":
        full = read.integer("sliding_window_pattern", 1, 1024)
        sliding = [(layer + 1) % full != 0 for layer in range(layers)]
    elif family.windows == "optional":
        first = read.integer("max_window_layers", 0, 1024, default=28)
        on = read.boolean("use_sliding_window", default=False)
        sliding = [on and layer >= first for layer in range(layers)]
    else:
        sliding = [family.windows == "all" and read.values.get("sliding_window") is not None] * layers
    return ["sliding_attention" if on else "full_attention" for on in sliding]


def ropes_of(family: Family, read: "Reader", windows: Sequence[int | None], max_len: int) -> tuple[Rope, ...]:
    """Each layer's rotation. Newer configs nest one `rope_parameters` per layer type."""
    key = next((key for key in ("rope_parameters", "rope_scaling") if read.values.get(key)), None)
    given = mapping(read.values, key) if key else {}
    base = read.number("rope_theta", 1.0, 1e12, default=10_000.0)
    if "full_attention" in given or "sliding_attention" in given:
        full = _rope(_part(given, "full_attention"), base, max_len)
        local_base = read.number("rope_local_base_freq", 1.0, 1e12, default=base)
        local = _rope(_part(given, "sliding_attention"), local_base, max_len)
    else:
        full = local = _rope(given, base, max_len)
        if family.local_theta:
            local = Rope(theta=read.number("rope_local_base_freq", 1.0, 1e12))
    return tuple(full if window is None else local for window in windows)


def _part(given: Mapping[str, Any], layer_type: str) -> Mapping[str, Any]:
    return mapping(given, layer_type) if given.get(layer_type) else {}


def _rope(given: Mapping[str, Any], theta: float, max_len: int) -> Rope:
    read = Reader(given, where="rope_parameters.")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ModelConfigError(f"rope_type {kind!r} is not supported; known: {', '.join(ROPE_KINDS)}")
    require(
        given.get("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor other than 1 is not supported"
    )
    theta = read.number("rope_theta", 1.0, 1e12, default=theta)
    if kind == "default":
        return Rope(theta=theta)
    common: dict[str, Any] = {"kind": kind, "theta": theta, "factor": read.number("factor", 1.0, 1e6)}
    if kind == "linear":
        return Rope(**common)
    if kind == "llama3":
        low = read.number("low_freq_factor", 1e-6, 1e6)
        high = read.number("high_freq_factor", 1e-6, 1e6)
        require(high > low, f"rope high_freq_factor {high} must be above low_freq_factor {low}")
        original = read.integer("original_max_position_embeddings", 1, 2**24)
        return Rope(**common, original_max=original, low_freq_factor=low, high_freq_factor=high)
    return Rope(
        **common,
        original_max=read.integer("original_max_position_embeddings", 1, 2**24, default=max_len),
        beta_fast=read.number("beta_fast", 1e-6, 1e6, default=32.0),
        beta_slow=read.number("beta_slow", 1e-6, 1e6, default=1.0),
        attention_factor=read.optional("attention_factor", 0.0, 1e6),
        mscale=read.optional("mscale", 0.0, 1e6),
        mscale_all_dim=read.optional("mscale_all_dim", 0.0, 1e6),
        truncate=read.boolean("truncate", default=True),
    )
