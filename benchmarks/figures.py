"""Draws the figures of docs/techniques.md from the results beside this file: python -m benchmarks.figures

Needs the extra `figures`. What has no result yet is named and left out; which command makes it stands in the page.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.report import RESULTS

FOLDER = Path(__file__).resolve().parent.parent / "docs/figures"
GREY, RED, YELLOW, BLUE = COLOURS = ("#999999", "#c06030", "#d0a030", "#2060a0")
WAYS = ("maximum", "power of two", "oracle", "paged, block 16")
Result = dict[str, Any]


def kv_cache(result: Result) -> "pyplot.Figure":
    """Seconds to the n-th token."""
    figure, axes = pyplot.subplots(figsize=(5, 3))
    for (name, points), colour in zip(result["course"].items(), (BLUE, RED), strict=True):
        by = result["growth"][name]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            label=f"{name} the cache: twice the tokens, {by:.1f}× the time",
        )
    label(axes, "tokens", "seconds", result["model"])
    return figure


def paging(result: Result) -> "pyplot.Figure":
    """Slots allocated and slots that hold a token, step by step."""
    slots = result["settings"]["slots"]
    figure, axes = pyplot.subplots(1, len(WAYS), figsize=(11, 2.8), sharey=True, sharex=True)
    for axis, name, colour in zip(axes, WAYS, COLOURS, strict=True):
        course = result["courses"][name]
        allocated, held = ([value / 1024 for value in course[key]] for key in ("allocated", "held"))
        steps = [number * course["every"][0] for number in range(len(held))]
        axis.fill_between(steps, allocated, held, color=colour, alpha=0.35, lw=0, label="allocated, empty")
        axis.fill_between(steps, held, color=colour, lw=0, label="holds a token")
        label(axis, "step", "", f"{name}: {result['figures'][name]['waste']:.0%} empty")
    axes[0].set_ylabel(f"thousand slots of {slots // 1024}", fontsize=8)
    return figure


def sharing(result: Result) -> "pyplot.Figure":
    """Blocks saved, beside the optimum and the paper's band."""
    figure, axes = pyplot.subplots(1, 2, figsize=(7, 3), sharey=True)
    for axis, kind, what in zip(axes, ("parallel", "beam"), ("samples", "beams"), strict=True):
        rows = result["figures"][kind]
        places = range(len(rows))
        low, high = (100 * bound for bound in result["paper"][kind])
        axis.axhspan(low, high, color=GREY, alpha=0.3, lw=0, label="the paper, ShareGPT")
        axis.bar(
            places, [100 * row["blocks"] for row in rows.values()], 0.6, color=BLUE, label="blocks saved"
        )
        for place, row in zip(places, rows.values(), strict=True):
            best = 100 * row["blocks_optimum"]
            axis.plot((place - 0.4, place + 0.4), (best, best), color=RED, label=None if place else "optimum")
        axis.set_xticks(places, [f"{n} {what}" for n in rows])
        label(axis, "", "", "parallel sampling" if kind == "parallel" else "beam search")
    axes[0].set_ylabel("% of blocks without sharing", fontsize=8)
    axes[1].get_legend().remove()  # the same as beside it
    return figure


def heads(result: Result, gpu: Result) -> "pyplot.Figure":
    """Memory and time of decode attention by KV heads, of MHA's."""
    figure, axes = pyplot.subplots(figsize=(5, 3))
    on_gpu = {name.removesuffix("-8"): row["us"]["holdfast"] for name, row in gpu["heads"].items()}
    kinds = result["kinds"]
    series = {
        "KV bytes of a token": [row["token_bytes"] for row in kinds.values()],
        "decode, CPU": [row["ms"]["median"] for row in kinds.values()],
        f"decode, {gpu['gpu']['gpu'].removeprefix('one ')}": [on_gpu[name] for name in kinds],
    }
    for number, ((name, values), colour) in enumerate(zip(series.items(), (GREY, YELLOW, BLUE), strict=True)):
        places = [place + 0.27 * (number - 1) for place in range(len(kinds))]
        bars = axes.bar(places, [100 * value / values[0] for value in values], 0.25, color=colour, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(kinds)), kinds)
    label(
        axes,
        "",
        "% of MHA's",
        f"{result['settings']['rows']} × {result['settings']['context']} on the CPU, 64 × 8192 on the GPU",
    )
    return figure


def flash(result: Result) -> "pyplot.Figure":
    """Extra memory and time by length, both logarithmic."""
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3))
    tokens = [row["tokens"] for row in result["rows"]]
    for name, colour in (("naive", RED), ("tiled", BLUE)):
        peaks = [row["peak_bytes"][name] for row in result["rows"]]
        times = [row["ms"][name] for row in result["rows"]]
        axes[0].plot(
            tokens, [None if peak is None else peak / 2**20 for peak in peaks], "o-", color=colour, label=name
        )
        axes[1].plot(tokens, times, "o-", color=colour, label=name)
        for token, peak in zip(tokens, peaks, strict=True):
            if peak is None:
                axes[0].axvline(token, color=colour, ls=":", label=f"{name}: out of memory")
    for axis, what in zip(axes, ("MiB beyond q, k, v", "ms"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(tokens, [f"{token // 1024}k" for token in tokens])
        label(
            axis, "tokens of the prompt", what, result.get("gpu", {}).get("gpu", "CPU").removeprefix("one ")
        )
    return figure


def prefix(result: Result) -> "pyplot.Figure":
    """Requests a second with the cache and without, by share."""
    figure, axes = pyplot.subplots(figsize=(5, 3))
    shares = result["shares"]
    for number, (side, colour) in enumerate((("without", GREY), ("with", BLUE))):
        rates = [row["requests_per_second"][side]["median"] for row in shares.values()]
        places = [place + 0.4 * number - 0.2 for place in range(len(shares))]
        axes.bar(places, rates, 0.38, color=colour, label=f"{side} the cache")
    for place, row in enumerate(shares.values()):
        top = max(row["requests_per_second"][side]["median"] for side in ("with", "without"))
        axes.text(place, top, f"{row['speedup']['median']:.2f}×", ha="center", va="bottom", fontsize=8)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(shares)), shares)
    label(axes, "requests that begin alike", "requests/s", result["device"].removeprefix("one "))
    return figure


def label(axis: Any, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)


GPU = "h100-80gb-hbm3"  # whose results the page shows
FIGURES: dict[str, tuple[Callable[..., "pyplot.Figure"], tuple[str, ...]]] = {
    "kv-cache": (kv_cache, ("kv-cache-cpu",)),
    "paging": (paging, ("paging",)),
    "sharing": (sharing, ("sharing",)),
    "heads": (heads, ("heads-cpu", f"kernels-{GPU}")),
    "flash": (flash, (f"flash-{GPU}",)),
    "flash-cpu": (flash, ("flash-cpu",)),
    "prefix": (prefix, (f"prefix-{GPU}",)),
    "prefix-cpu": (prefix, ("prefix-cpu",)),
}


def draw(name: str, results: Path = RESULTS, folder: Path = FOLDER) -> Path | None:
    """The figure's file; None where a result is missing."""
    make, needed = FIGURES[name]
    sources = [results / f"{source}.json" for source in needed]
    if not all(source.exists() for source in sources):
        return None
    figure = make(*(json.loads(source.read_text("utf8")) for source in sources))
    figure.tight_layout()
    path = folder / f"{name}.png"
    folder.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path


def main() -> None:
    for name, (_, needed) in FIGURES.items():
        print(draw(name) or f"{name}: no result yet among {', '.join(needed)}")


if __name__ == "__main__":
    main()
