"""Charts as plain geometry that the page's template writes as SVG: paths, ticks and places of values in pixels.

Curves are of what was recorded while training: mean and range over the seeds of an experiment.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.results import Result

NO_TERMS = {"kind", "step", "epoch", "seconds", "waited"}
"""What a step's record holds besides numbers to draw."""

FIRST_TERMS, LAST_TERMS = ("loss", "cross_entropy", "lovasz"), ("gradient_norm", "learning_rate")
MOST_POINTS = 100
WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 30
LOGARITHMIC_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis of positive values is logarithmic."""

ROUND = (1, 2, 5, 10)
"""Axes are marked at multiples of these times a power of ten."""

DOTS_WIDTH, LABEL_WIDTH, NUMBER_WIDTH, ROW_HEIGHT = 640, 130, 90, 34

Ticks = list[tuple[float, str]]
"""Marks on an axis: place in pixels, and text."""


class Series(NamedTuple):
    """A curve in pixels: SVG path data of the mean, and of the range over seeds (empty for one seed).

    `experiment` is its index, which chooses the colour. From `hover` the page's script shows values under the pointer:
    for each point its place in pixels, its step and its value as text.
    """

    experiment: int
    name: str
    path: str
    band: str
    hover: dict[str, Any]


class LineChart(NamedTuple):
    """Curves over training steps, on a vertical axis that may be logarithmic."""

    title: str
    logarithmic: bool
    x_ticks: Ticks
    y_ticks: Ticks
    series: list[Series]


class Dot(NamedTuple):
    """One experiment of the dot chart; all but its row `y` in pixels along the horizontal axis."""

    experiment: int
    name: str
    y: float
    mean: float
    low: float
    high: float
    seeds: list[float]
    text: str


class DotChart(NamedTuple):
    """mIoU of every experiment: each seed, their mean, and one standard deviation to each side."""

    height: int
    dots: list[Dot]
    ticks: Ticks
    baseline: float | None
    teacher: float | None


def line_charts(results: list[Result], last_step: int) -> list[LineChart]:
    """mIoU of the validations and each number that steps record; without those that nobody has."""
    experiments, width = [result.experiment for result in results], block_width(last_step)
    validations = [mean_curve([run.validations for run in one.runs], "miou", scale=100) for one in experiments]
    wanted = {"validation mIoU, %": validations}
    for term in recorded_terms(experiments):
        curves = [mean_curve([run.steps for run in one.runs], term, width) for one in experiments]
        wanted[term.replace("_", " ")] = curves
    names = [experiment.name for experiment in experiments]
    return [
        line_chart(title, names, curves, last_step)
        for title, curves in wanted.items()
        if any(curve is not None for curve in curves)
    ]


def line_chart(title: str, names: list[str], curves: list[np.ndarray | None], last_step: int) -> LineChart:
    """Place the curves of experiments, see `mean_curve`, on common axes that end at `last_step`."""
    values = np.concatenate([curve[2:].ravel() for curve in curves if curve is not None])
    logarithmic = bool(values.min() > 0 and values.max() / values.min() >= LOGARITHMIC_FROM)
    scaled = np.log10 if logarithmic else np.asarray
    bottom, top = padded(scaled(values), 0.05)

    def across(step: np.ndarray) -> np.ndarray:
        return LEFT + step / last_step * (WIDTH - LEFT - RIGHT)

    def up(value: np.ndarray) -> np.ndarray:
        return HEIGHT - BOTTOM - (scaled(value) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    series = []
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        if curve is None:
            continue
        (steps, mean, low, high), band = curve, ""
        x = across(steps)
        if (high > low).any():
            band = path(np.append(x, x[::-1]), np.append(up(high), up(low)[::-1])) + "Z"
        hover: dict[str, Any] = {"experiment": index, "name": name, "step": steps.tolist()}
        hover |= {"x": np.round(x, 1).tolist(), "value": list(map(short, mean))}
        series.append(Series(index, name, path(x, up(mean)), band, hover))
    if logarithmic:
        heights = ticks(LogLocator(subs=(1,) if top - bottom > 3 else (1, 2, 5)), 10**bottom, 10**top, up)
    else:
        heights = ticks(MaxNLocator(5, steps=ROUND), bottom, top, up)
    return LineChart(title, logarithmic, ticks(MaxNLocator(5, steps=ROUND), 0, last_step, across), heights, series)


def dot_chart(results: list[Result], teacher_miou: float | None) -> DotChart | None:
    """mIoU of the experiments in percent; None where none has one."""
    shown = [(index, result, result.miou.mean) for index, result in enumerate(results) if result.miou.mean is not None]
    if not shown:
        return None
    spreads = {index: result.miou.spread or 0.0 for index, result, _ in shown}
    ends = [mean + side * spreads[index] for index, _, mean in shown for side in (-1, 1)]
    ends += [value for _, result, _ in shown for value in result.miou.values]
    low, high = padded(100 * np.array([*ends, *([] if teacher_miou is None else [teacher_miou])]), 0.08)

    def across(percent: float) -> float:
        return LABEL_WIDTH + (percent - low) / (high - low) * (DOTS_WIDTH - LABEL_WIDTH - NUMBER_WIDTH)

    def place(share: float) -> float:
        return round(across(100 * share), 1)

    dots = []
    for row, (index, result, mean) in enumerate(shown):
        sides = (place(mean - spreads[index]), place(mean + spreads[index]))
        y, seeds = TOP + (row + 0.5) * ROW_HEIGHT, list(map(place, result.miou.values))
        dots.append(Dot(index, result.experiment.name, y, place(mean), *sides, seeds, f"{100 * mean:.1f}"))
    baseline = next((dot.mean for dot in dots if results[dot.experiment].is_baseline), None)
    teacher = None if teacher_miou is None else place(teacher_miou)
    height = TOP + len(dots) * ROW_HEIGHT + BOTTOM
    return DotChart(height, dots, ticks(MaxNLocator(6, steps=ROUND), low, high, across), baseline, teacher)


def padded(values: np.ndarray, share: float) -> tuple[float, float]:
    """The interval that holds some values, widened to both sides by a share of its length; never empty."""
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def ticks(locator: Locator, low: float, high: float, place: Callable[[Any], Any]) -> Ticks:
    """Marks of an axis from one value to another; `place` is where in pixels a value lies."""
    values = [float(value) for value in locator.tick_values(low, high) if low <= value <= high]
    return [(round(float(place(value)), 1), short(value)) for value in values]


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:,.0f}" if value == 0 or abs(value) >= 1000 else f"{value:.4g}"


def recorded_terms(experiments: Iterable[Experiment]) -> list[str]:
    """Every number that some run recorded at its steps, in the order in which they are shown."""
    records = (record for experiment in experiments for run in experiment.runs for record in run.steps[:1])
    names = {name for record in records for name in record} - NO_TERMS
    middle = sorted(names - {*FIRST_TERMS, *LAST_TERMS})
    return [name for name in (*FIRST_TERMS, *middle, *LAST_TERMS) if name in names]


def values_of(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """Step and value of the records that hold a finite value, float [N, 2]."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    found = np.array(pairs, np.float64).reshape(-1, 2)
    return found[np.isfinite(found[:, 1])]


def block_width(steps: int) -> int:
    """Steps that are averaged into one point of a curve."""
    return max(1, -(-steps // MOST_POINTS))


def block_means(pairs: np.ndarray, width: int) -> np.ndarray:
    """Means over blocks of `width` consecutive steps, float [M, 2]: middle of the block, and mean of its values."""
    block = ((pairs[:, 0] - 1) // width).astype(np.int64)
    present, place = np.unique(block, return_inverse=True)
    sums = np.bincount(place, weights=pairs[:, 1])
    return np.stack((present * width + (width + 1) / 2, sums / np.bincount(place)), axis=1)


def mean_curve(seeds: list[list[dict[str, Any]]], name: str, width: int = 1, scale: float = 1) -> np.ndarray | None:
    """What the records of some seeds say of one number, times `scale`; None where they share no step.

    Returns:
        float [4, N]: rising steps, each the middle of a block of `width` and in all seeds that record the number;
        mean, lowest and highest over the seeds.
    """
    found = [values_of(records, name) for records in seeds]
    series = [block_means(pairs, width) * (1, scale) for pairs in found if len(pairs)]
    common = sorted(set.intersection(*(set(pairs[:, 0]) for pairs in series))) if series else []
    if not common:
        return None
    values = np.stack([pairs[np.isin(pairs[:, 0], common), 1] for pairs in series])
    return np.stack((common, values.mean(axis=0), values.min(axis=0), values.max(axis=0)))
