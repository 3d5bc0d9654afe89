"""Charts as plain geometry that the page's template writes as SVG: paths, ticks and places of values in pixels."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from stage2_train_student.comparison.curves import Curve
from stage2_train_student.comparison.results import Result

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
    """A curve in pixels.

    Attributes:
        experiment: index of the experiment, which chooses the colour.
        name: of the experiment.
        path: of the mean, as SVG path data.
        band: outline of the range over seeds, as SVG path data; empty for one seed.
        hover: for the page's script, which shows values under the pointer: experiment, name, and for each point its
            place in pixels, its step and its value as text.
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


def line_chart(title: str, curves: list[tuple[int, Curve]], last_step: int) -> LineChart:
    """Place curves, each with the index of its experiment, on common axes that end at `last_step`."""
    values = np.concatenate([part for _, curve in curves for part in (curve.low, curve.high)])
    logarithmic = bool(values.min() > 0 and values.max() / values.min() >= LOGARITHMIC_FROM)
    scaled = np.log10 if logarithmic else np.asarray
    low, high = padded(scaled(values), 0.05)

    def across(step: np.ndarray) -> np.ndarray:
        return LEFT + step / last_step * (WIDTH - LEFT - RIGHT)

    def up(value: np.ndarray) -> np.ndarray:
        return HEIGHT - BOTTOM - (scaled(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    series = []
    for index, curve in curves:
        x, band = across(curve.steps), ""
        if (curve.high > curve.low).any():
            band = path(np.append(x, x[::-1]), np.append(up(curve.high), up(curve.low)[::-1])) + "Z"
        hover: dict[str, Any] = {"experiment": index, "name": curve.name, "step": curve.steps.tolist()}
        hover |= {"x": np.round(x, 1).tolist(), "value": list(map(short, curve.mean))}
        series.append(Series(index, curve.name, path(x, up(curve.mean)), band, hover))
    if logarithmic:
        heights = marks(LogLocator(subs=(1,) if high - low > 3 else (1, 2, 5)), 10**low, 10**high)
    else:
        heights = marks(MaxNLocator(5, steps=ROUND), low, high)
    steps = marks(MaxNLocator(5, steps=ROUND), 0, last_step)
    return LineChart(title, logarithmic, ticks(steps, across(steps)), ticks(heights, up(heights)), series)


def dot_chart(results: list[Result], teacher_miou: float | None) -> DotChart | None:
    """mIoU of the experiments in percent; None where none has one."""
    shown = [(index, result, result.miou.mean) for index, result in enumerate(results) if result.miou.mean is not None]
    if not shown:
        return None
    spreads = {index: result.miou.spread or 0.0 for index, result, _ in shown}
    ends = [mean + side * spreads[index] for index, _, mean in shown for side in (-1, 1)]
    ends += [value for _, result, _ in shown for value in result.miou.values]
    low, high = padded(100 * np.array([*ends, *([] if teacher_miou is None else [teacher_miou])]), 0.08)

    def across(share: float) -> float:
        return round(LABEL_WIDTH + (100 * share - low) / (high - low) * (DOTS_WIDTH - LABEL_WIDTH - NUMBER_WIDTH), 1)

    dots = []
    for row, (index, result, mean) in enumerate(shown):
        sides = (across(mean - spreads[index]), across(mean + spreads[index]))
        y, seeds = TOP + (row + 0.5) * ROW_HEIGHT, list(map(across, result.miou.values))
        dots.append(Dot(index, result.experiment.name, y, across(mean), *sides, seeds, f"{100 * mean:.1f}"))
    percents = marks(MaxNLocator(6, steps=ROUND), low, high)
    baseline = next((dot.mean for dot in dots if results[dot.experiment].is_baseline), None)
    teacher = None if teacher_miou is None else across(teacher_miou)
    height = TOP + len(dots) * ROW_HEIGHT + BOTTOM
    return DotChart(height, dots, ticks(percents, np.array([across(one / 100) for one in percents])), baseline, teacher)


def padded(values: np.ndarray, share: float) -> tuple[float, float]:
    """The interval that holds some values, widened to both sides by a share of its length; never empty."""
    low, high = float(values.min()), float(values.max())
    margin = share * (high - low) if high > low else 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def marks(locator: Locator, low: float, high: float) -> np.ndarray:
    """Values in an interval that an axis is marked at, float [K]."""
    values = np.asarray(locator.tick_values(low, high))
    return values[(values >= low) & (values <= high)]


def ticks(values: np.ndarray, places: np.ndarray) -> Ticks:
    """Marks of some values at some places."""
    return [(round(place, 1), short(value)) for place, value in zip(places.tolist(), values.tolist(), strict=True)]


def short(value: float) -> str:
    """A number in few characters."""
    return f"{value:,.0f}" if value == 0 or abs(value) >= 1000 else f"{value:.4g}"
