"""Figures of `growth`: costs against the volume, and what dask's scheduler bears."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .growth import WORKS, Point

COLORS = dict(zip(WORKS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))
STYLES = {1: ("--", "o"), 2: ("-", "s")}
PANELS = (
    ("seconds", "seconds"),
    ("peak", "most memory of all processes, MB"),
    ("megabytes", "fetched, or on disk, MB"),
)


def draw(points: Sequence[Point], tasks: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `growth.png`, and `scheduler.png` if the scheduler was measured."""
    draw_growth([point for point in points if point.seconds], folder / "growth.png")
    rows = [row for row in tasks if "error" not in row]
    if rows:
        draw_scheduler(rows, folder / "scheduler.png")


def draw_growth(points: Sequence[Point], path: Path) -> None:
    """Seconds, memory and bytes against the slices. Parallel to the grey line is proportional to the volume."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(13, 4.6), layout="constrained")
    slices = sorted({point.slices for point in points})
    for axes, (name, title) in zip(panels, PANELS, strict=True):
        for work in WORKS:
            for workers, (style, marker) in STYLES.items():
                line = [point for point in points if (point.work, point.workers) == (work, workers)]
                values = [getattr(point, name) for point in line]
                options = {"linestyle": style, "marker": marker, "markersize": 5, "color": COLORS[work]}
                label = f"{work}, {workers} worker{'s' if workers > 1 else ''}"
                axes.plot([point.slices for point in line], values, label=label, **options)
        axes.set_xscale("log", base=2)
        axes.set_xticks(slices, [str(n) for n in slices])
        axes.set_xlabel("slices")
        axes.set_title(title, fontsize=11)
        if name == "peak":
            axes.set_ylim(0, None)  # that it is flat is what is to be seen
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            draw_linear(axes, slices)
        axes.grid(visible=True, which="both", alpha=0.25)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_linear(axes: Axes, slices: Sequence[int]) -> None:
    """A grey line of what would be proportional to the volume."""
    low, high = axes.get_ylim()
    first = (low * high / (slices[-1] / slices[0])) ** 0.5
    ends = [first, first * slices[-1] / slices[0]]
    axes.plot([slices[0], slices[-1]], ends, color="0.6", linewidth=6, alpha=0.35, zorder=0, label="proportional")
    axes.set_ylim(min(low, ends[0]), max(high, ends[1]))


def draw_scheduler(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """CPU time and memory of a task against the number of workers."""
    workers = [str(row["workers"]) for row in rows]
    panels_of = (
        ("CPU ms a task", "CPU of all, ms a task"),
        ("KB a task", "memory, KB a task"),
        ("seconds", "seconds in all"),
    )
    figure, panels = plt.subplots(1, len(panels_of), figsize=(11, 3.4), layout="constrained")
    for axes, (name, title) in zip(panels, panels_of, strict=True):
        bars = axes.bar(workers, [row[name] for row in rows], color=COLORS["to_zarr"], width=0.55)
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.margins(y=0.15)
        axes.set_xlabel("simulated workers")
        axes.set_title(title, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Labelled shares of {rows[0]['slices']} slices: {rows[0]['most tasks in the scheduler']:,} tasks", fontsize=11
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
