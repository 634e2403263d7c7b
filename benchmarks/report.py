"""What every benchmark result carries: figures with spread, hardware, versions. Owns the JSON's shape."""

import json
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "transformers", "triton", "grpcio", "pyzmq", "numpy", "holdfast")


@dataclass(frozen=True, slots=True)
class Figure:
    """Repeated measurements of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.1f} ({min(self.values):.1f}–{max(self.values):.1f})"

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def ratios(ours: Figure, theirs: Figure) -> Figure:
    """Pair by pair: run i of one beside run i of the other, as the machine was at that moment."""
    return Figure([a / b for a, b in zip(ours.values, theirs.values, strict=True)])


def write(name: str, body: dict[str, Any]) -> Path:
    """benchmarks/results/NAME.json with date, hardware and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    } | body
    path.write_text(json.dumps(document, indent=2) + "\n", "utf8")
    return path


def chip(gpu: str) -> str:
    """A GPU's name as result files have it: "NVIDIA H100 80GB HBM3" is h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("one ").removeprefix("nvidia ")).strip("-")


def hardware() -> dict[str, Any]:
    """Processor, the matrix extensions that decide bf16 speed, and cores."""
    info = Path("/proc/cpuinfo").read_text("utf8")
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    extensions = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in info]
    return {"cpu": names[0] if names else platform.machine(), "cores": len(names), "extensions": extensions}


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
