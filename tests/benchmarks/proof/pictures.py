"""The answers as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory
from scipy import stats

from stage2_train_student.comparison.statistics import LEVEL
from tests.benchmarks.proof.plan import BASELINE, FULL, HEADLINE

BLUE, ORANGE, GREY = "#3b7dd8", "#d9822b", "#8a8f98"


def draw_all(numbers: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all pictures into a folder, and say which."""
    drawn = []
    rows = sum(1.5 + len(question["comparisons"]) for question in numbers["questions"].values())
    for name, size, draw in (
        ("proof", (8, 1 + 0.33 * rows), gains),
        ("proof_labels", (5, 3.6), labels),
        ("proof_cost", (5, 3.6), cost),
    ):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes, numbers)
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        drawn.append(path)
    return drawn


def gains(axes: Axes, numbers: Mapping[str, Any]) -> None:
    """Every comparison: the difference, its interval, and the differences by seed."""
    place, ticks = 0.0, []
    heading: dict[str, Any] = {
        "transform": blended_transform_factory(axes.figure.transFigure, axes.transData),
        "in_layout": False,
        "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
        "fontsize": 8.5,
        "va": "center",
        "color": "#444444",
        "weight": "bold",
    }
    for question in numbers["questions"].values():
        axes.text(0.01, place, question["asked"], **heading)
        place -= 0.9
        for row in question["comparisons"]:
            low, high = row["interval"]
            axes.plot([low, high], [place, place], color=BLUE, linewidth=2)
            axes.plot(row["by_seed"], [place] * len(row["by_seed"]), "|", color=GREY, markersize=9)
            axes.plot([row["gain"]], [place], "o", color=BLUE, markersize=6)
            ticks.append((place, f"{row['student']} against {row['reference']}".replace("_", " ")))
            place -= 0.8
        place -= 0.3
    axes.set_ylim(place, 0.6)
    axes.axvline(0, color="#444444", linewidth=0.8, zorder=0)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([tick for tick, _ in ticks], [text for _, text in ticks], fontsize=8)
    rows = [row for question in numbers["questions"].values() for row in question["comparisons"]]
    ends = [end for row in rows for end in (*row["interval"], *row["by_seed"], 0.0)]
    axes.set_xlim(min(ends) - 1, max(ends) + 1)
    axes.set_xlabel("gain in points of mIoU; line: 95 % interval, corrected by question; bars: seeds", fontsize=9)
    axes.tick_params(axis="y", length=0)


def labels(axes: Axes, numbers: Mapping[str, Any]) -> None:
    """mIoU by how much has labels, with and without a teacher: means, their 95 % intervals, and seeds."""
    rows = numbers["questions"][HEADLINE]["comparisons"]
    amounts = [row["student"].removeprefix("full_").replace("_", " ") for row in rows]
    for kind, last, colour, label in (
        ("reference", BASELINE, ORANGE, "labels alone"),
        ("student", FULL, BLUE, "and targets of all 400 scans"),
    ):
        values = [list(numbers["students"][name]["by_seed"].values()) for name in [*(row[kind] for row in rows), last]]
        margins = [half_interval(one) for one in values]
        axes.errorbar(range(len(values)), [mean(one) for one in values], margins, color=colour, label=label, capsize=3)
        for place, one in enumerate(values):
            axes.plot([place] * len(one), one, "_", color=colour, alpha=0.5)
    axes.set_xticks(range(len(amounts) + 1), [*amounts, "all"], fontsize=8)
    axes.set_xlabel("labels")
    axes.set_ylabel("mIoU in %")
    axes.legend(frameon=False, fontsize=8)


def half_interval(values: Sequence[float]) -> float:
    """Of the 95 % interval of a mean, Student's t."""
    return float(stats.t.isf(LEVEL / 2, len(values) - 1) * stats.sem(values))


def cost(axes: Axes, numbers: Mapping[str, Any]) -> None:
    """Time of a number of experiments, in units of one with the teacher in the loop."""
    rows = numbers["cost"]
    unit = mean(row["hours_online"] / row["experiments"] for row in rows)
    for kind, colour, label in (
        ("online", ORANGE, "teacher in the loop"),
        ("cached", BLUE, "from a cache, dump included"),
    ):
        values = [row[f"hours_{kind}"] / unit for row in rows]
        axes.plot([row["experiments"] for row in rows], values, "o-", color=colour, label=label)
    axes.set_xlabel("experiments")
    axes.set_ylabel("time, in experiments with the teacher")
    axes.legend(frameon=False, fontsize=8)
