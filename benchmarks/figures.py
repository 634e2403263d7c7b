"""Draws the figures of docs/techniques.md: python -m benchmarks.figures (needs the extra `figures`)."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.paging import Usage, measure

FOLDER = Path(__file__).resolve().parent.parent / "docs/figures"
REQUESTS, SLOTS = 800, 65_536
COLOURS = ("#999999", "#c06030", "#d0a030", "#2060a0")


def paging(runs: dict[str, Usage]) -> None:
    """Slots allocated and slots that hold a token, step by step."""
    figure, axes = pyplot.subplots(1, len(runs), figsize=(11, 2.8), sharey=True, sharex=True)
    for axis, (name, usage), colour in zip(axes, runs.items(), COLOURS, strict=True):
        steps = range(len(usage.course))
        allocated, held = ([pair[i] / 1024 for pair in usage.course] for i in (0, 1))
        axis.fill_between(steps, allocated, held, color=colour, alpha=0.35, lw=0, label="allocated, empty")
        axis.fill_between(steps, held, color=colour, lw=0, label="holds a token")
        axis.set_title(f"{name}: {usage.figures(SLOTS)['waste']:.0%} empty", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7, loc="upper right", frameon=False)
    axes[0].set_ylabel(f"thousand slots of {SLOTS // 1024}", fontsize=8)
    save(figure, "paging.png")


def save(figure: "pyplot.Figure", name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(FOLDER / name, dpi=110)
    print(FOLDER / name)


def main() -> None:
    paging(measure(REQUESTS, SLOTS))


if __name__ == "__main__":
    main()
