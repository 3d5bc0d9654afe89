"""Charts as plain geometry that the page's template writes as SVG: paths, ticks and places of values in pixels."""

import math
from typing import Any, NamedTuple

import numpy as np

from stage2_train_student.comparison.curves import Curve
from stage2_train_student.comparison.results import Result
from stage2_train_student.comparison.statistics import Sample

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 30
LOGARITHMIC_FROM = 30.0
"""Ratio of the largest to the smallest value from which an axis of positive values is logarithmic."""

LABEL_WIDTH, ROW_HEIGHT = 130, 34


class Tick(NamedTuple):
    """A mark on an axis: its place in pixels and its text."""

    place: float
    text: str


class Line(NamedTuple):
    """A curve in pixels.

    Attributes:
        experiment: index of the experiment, which chooses the colour.
        name: of the experiment.
        path: of the mean, as SVG path data.
        band: outline of the range over seeds, as SVG path data; empty for one seed.
    """

    experiment: int
    name: str
    path: str
    band: str


class LineChart(NamedTuple):
    """A chart of curves.

    Attributes:
        title: what is drawn.
        logarithmic: whether the vertical axis is.
        x_ticks: on the horizontal axis, steps.
        y_ticks: on the vertical axis.
        lines: one for each experiment that has such a curve.
        hover: what the page's script shows under the pointer: places in pixels and values by experiment.
    """

    title: str
    logarithmic: bool
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    hover: list[dict[str, Any]]


class Dot(NamedTuple):
    """One experiment of the dot chart: all in pixels along the horizontal axis."""

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

    width: int
    height: int
    dots: list[Dot]
    ticks: list[Tick]
    baseline: float | None
    teacher: float | None


def line_chart(title: str, curves: list[tuple[int, Curve]], last_step: int) -> LineChart:
    """Place curves, each with the index of its experiment, on common axes that end at `last_step`."""
    values = np.concatenate([part for _, curve in curves for part in (curve.low, curve.high)])
    logarithmic = bool(values.min() > 0 and values.max() / values.min() >= LOGARITHMIC_FROM)
    x_low, x_high = 0.0, float(last_step)
    scaled = np.log10(values) if logarithmic else values
    y_low, y_high = padded(float(scaled.min()), float(scaled.max()), 0.05)

    def across(step: np.ndarray) -> np.ndarray:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def up(value: np.ndarray) -> np.ndarray:
        height = np.log10(value) if logarithmic else value
        return HEIGHT - BOTTOM - (height - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    lines, hover = [], []
    for index, curve in curves:
        x, mean = across(curve.steps), up(curve.mean)
        band = ""
        if (curve.high > curve.low).any():
            band = path(np.append(x, x[::-1]), np.append(up(curve.high), up(curve.low)[::-1])) + "Z"
        lines.append(Line(index, curve.name, path(x, mean), band))
        hover.append(
            {
                "experiment": index,
                "name": curve.name,
                "x": np.round(x, 1).tolist(),
                "y": np.round(mean, 1).tolist(),
                "step": np.round(curve.steps, 1).tolist(),
                "value": [short(value) for value in curve.mean],
            }
        )
    x_ticks = [Tick(float(across(np.array(value))), short(value)) for value in nice_ticks(x_low, x_high, 5)]
    if logarithmic:
        y_ticks = [Tick(float(up(np.array(value))), short(value)) for value in decade_ticks(y_low, y_high)]
    else:
        y_ticks = [Tick(float(up(np.array(value))), short(value)) for value in nice_ticks(y_low, y_high, 5)]
    return LineChart(title, logarithmic, x_ticks, y_ticks, lines, hover)


def dot_chart(results: list[Result], teacher_miou: float | None, width: int = 640) -> DotChart | None:
    """mIoU of the experiments in percent; None where none has one."""
    shown = [(index, result) for index, result in enumerate(results) if result.miou.mean is not None]
    if not shown:
        return None
    ends = [100 * value for _, result in shown for value in (*result.miou.values, *whisker(result.miou))]
    ends += [100 * teacher_miou] if teacher_miou is not None else []
    low, high = padded(min(ends), max(ends), 0.08)

    def across(share: float) -> float:
        return round(LABEL_WIDTH + (100 * share - low) / (high - low) * (width - LABEL_WIDTH - 90), 1)

    dots = []
    for row, (index, result) in enumerate(shown):
        mean = result.miou.mean or 0.0
        left, right = whisker(result.miou)
        seeds = [across(value) for value in result.miou.values]
        y = TOP + (row + 0.5) * ROW_HEIGHT
        name = result.experiment.name
        dots.append(Dot(index, name, y, across(mean), across(left), across(right), seeds, f"{100 * mean:.1f}"))
    baseline = next((dot.mean for dot in dots if results[dot.experiment].is_baseline), None)
    return DotChart(
        width,
        TOP + len(dots) * ROW_HEIGHT + BOTTOM,
        dots,
        [Tick(across(value / 100), short(value)) for value in nice_ticks(low, high, 6)],
        baseline,
        None if teacher_miou is None else across(teacher_miou),
    )


def whisker(sample: Sample) -> tuple[float, float]:
    """One standard deviation to each side of the mean; the mean itself for one seed."""
    mean, spread = sample.mean or 0.0, sample.spread or 0.0
    return mean - spread, mean + spread


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """An interval widened to both sides by a share of its length; never empty."""
    if high <= low:
        margin = 0.5 * abs(low) or 0.5
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in an interval, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and where they are few their multiples by 2 and 5, between two logarithms."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 3 else (1, 2, 5)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in values if low <= math.log10(value) <= high]


def short(value: float) -> str:
    """A number in few characters."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
