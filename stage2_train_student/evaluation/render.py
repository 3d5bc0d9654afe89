"""Pictures: a scan from above as truth, student and teacher see it, and confusion matrices, as PNG.

From above means: x (forward) up, y (left) to the left, the sensor in the middle of a square of 2 * radius metres.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from common.base.files import write_atomically
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid, bin_indices, to_polar
from common.training.metrics import ConfusionMatrix

BACKGROUND = np.array((255, 255, 255), np.uint8)
RIGHT, WRONG, WITHOUT_LABEL = (190, 190, 190), (220, 0, 0), (235, 235, 235)
"""Colours of points in pictures of errors; a point without a label is neither right nor wrong."""

MOST_COLUMNS = 4
PANEL_PIXELS = 600
PANEL_INCHES, LEGEND_ROW_INCHES, DOTS_PER_INCH = 5.0, 0.2, 130
COLOUR_MAP = "viridis"


@dataclass(frozen=True)
class ScanPicture:
    """What is known about a scan; what is None is not drawn.

    Attributes:
        points: float32 [N, 4], x, y, z in metres and remission.
        truth: uint8 [N] training labels, 0 = unlabelled; `student` and `teacher` are predicted ones.
        label_weights: float [R, P], sum of class weights over a pillar's voxels (LWD); NaN where nothing is labelled.
        feature_norms: float [R', P'], length of the teacher's pillar features at `layer`; NaN where there is no pillar.
    """

    title: str
    points: np.ndarray
    truth: np.ndarray | None = None
    student: np.ndarray | None = None
    teacher: np.ndarray | None = None
    label_weights: np.ndarray | None = None
    feature_norms: np.ndarray | None = None
    layer: str = ""


class Panel(NamedTuple):
    """One image: uint8 [size, size, 3] colours, or float [size, size] values with a colour bar."""

    title: str
    image: np.ndarray


def class_colours(label_map: LabelMap) -> np.ndarray:
    """Colour of each training class, uint8 [C, 3]."""
    return np.array([info.colour for info in label_map.classes], np.uint8)


def error_colours(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Colour of each point in a picture of errors, uint8 [N, 3] from labels [N]; truth 0 is no label."""
    kind = np.where(truth == 0, 2, prediction != truth)
    return np.array([RIGHT, WRONG, WITHOUT_LABEL], np.uint8)[kind]


def share_right(prediction: np.ndarray, truth: np.ndarray, word: str = "right") -> str:
    """Share of labelled points that are predicted right, as text."""
    labelled = truth != 0
    return f"{100 * (prediction == truth)[labelled].mean():.1f} % {word}" if labelled.any() else "no labels"


def panels(picture: ScanPicture, label_map: LabelMap, grid: PolarGrid, radius: float, size: int) -> list[Panel]:
    """Images of everything that is known, in the order in which they are shown."""
    found, colours = [], class_colours(label_map)
    both = [("student", picture.student), ("teacher", picture.teacher)]
    predictions = [(who, labels) for who, labels in both if labels is not None]

    def add_points(title: str, colour_of_point: np.ndarray) -> None:
        found.append(Panel(title, points_image(picture.points, colour_of_point, radius, size)))

    def add_pillars(title: str, values: np.ndarray | None) -> None:
        if values is not None:
            found.append(Panel(title, pillars_image(values, grid, radius, size)))

    if picture.truth is not None:
        add_points("ground truth", colours[picture.truth])
    for who, labels in predictions:
        add_points(who, colours[labels])
    if len(predictions) == 2:
        (_, ours), (_, theirs) = predictions
        title = f"student differs from teacher ({share_right(ours, theirs, 'the same')})"
        add_points(title, error_colours(ours, theirs))
    add_pillars("label weights of pillars", picture.label_weights)
    if picture.truth is not None:
        for who, labels in predictions:
            title = f"errors of the {who} ({share_right(labels, picture.truth)})"
            add_points(title, error_colours(labels, picture.truth))
    add_pillars(f"length of the teacher's pillar features, {picture.layer}", picture.feature_norms)
    return found


def draw_scan(picture: ScanPicture, label_map: LabelMap, grid: PolarGrid, radius: float = 50.0) -> Figure:
    """Everything that is known about a scan, in one figure with a legend.

    Each image shows `radius` metres each way; `grid` is that of the pillar maps.
    """
    shown = panels(picture, label_map, grid, radius, PANEL_PIXELS)
    rows = max(1, math.ceil(len(shown) / MOST_COLUMNS))
    columns = max(1, math.ceil(len(shown) / rows))
    legend = [*zip(label_map.names, class_colours(label_map), strict=True)]
    legend += [("right, or the same", RIGHT), ("wrong, or different", WRONG), ("no ground truth", WITHOUT_LABEL)]
    legend_columns = max(3, 2 * columns)
    legend_inches = LEGEND_ROW_INCHES * (2 + math.ceil(len(legend) / legend_columns))
    height = rows * PANEL_INCHES + legend_inches
    layout = ConstrainedLayoutEngine(rect=(0, legend_inches / height, 1, 1 - legend_inches / height))
    figure = Figure(figsize=(columns * PANEL_INCHES, height), dpi=DOTS_PER_INCH, layout=layout)
    figure.suptitle(f"{picture.title}, metres, x (forward) up, y to the left")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, shown, strict=False):
        draw_panel(figure, axis, panel, radius)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    patches = [Patch(facecolor="#" + bytes(colour).hex(), edgecolor="0.6", label=name) for name, colour in legend]
    figure.legend(handles=patches, loc="lower center", ncols=legend_columns, fontsize=9, frameon=False)
    return figure


def draw_panel(figure: Figure, axis: Axes, panel: Panel, radius: float) -> None:
    """One image with its title and, for values, a colour bar."""
    # y grows to the left: the axis is labelled with the scene's metres, not with pixels.
    extent = (radius, -radius, -radius, radius)
    axis.set_title(panel.title, fontsize=10)
    axis.tick_params(labelsize=7)
    if panel.image.ndim == 3:
        axis.imshow(panel.image, extent=extent, interpolation="nearest")
        return
    positive = panel.image[np.isfinite(panel.image) & (panel.image > 0)]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (0.1, 1.0)
    # A logarithmic scale must have a length, also where all values are equal.
    scale = LogNorm(low, max(high, 1.001 * low))
    drawn = axis.imshow(panel.image, extent=extent, interpolation="nearest", cmap=COLOUR_MAP, norm=scale)
    figure.colorbar(drawn, ax=axis, shrink=0.8)


def draw_confusion(matrix: ConfusionMatrix, label_map: LabelMap, title: str) -> Figure:
    """A confusion matrix: each row is a class of the ground truth, in percent of its points."""
    counts = matrix.counts[1:, 1:].astype(np.float64)
    points = counts.sum(axis=1)
    share = np.divide(counts, points[:, None], out=np.full_like(counts, np.nan), where=points[:, None] > 0)
    names, size = label_map.names[1:], len(counts)
    figure = Figure(figsize=(3 + 0.5 * size, 2 + 0.5 * size), dpi=DOTS_PER_INCH, layout="constrained")
    axis = figure.subplots()
    drawn = axis.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    axis.set_title(title)
    axis.set_xticks(range(size), names, rotation=60, ha="right")
    axis.set_yticks(range(size), [f"{name} ({count:,.0f})" for name, count in zip(names, points, strict=True)])
    axis.set(xlabel="prediction", ylabel="ground truth (points)")
    for (row, column), value in np.ndenumerate(np.nan_to_num(share)):
        if value >= 0.005:
            colour = "white" if value > 0.6 else "black"
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="percent of the class's points")
    return figure


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def points_image(points: np.ndarray, colours: np.ndarray, radius: float, size: int, dot: int = 2) -> np.ndarray:
    """Draw points as dots of `dot` pixels a side; of points at one place the highest is seen.

    Args:
        points: float32 [N, 4], x, y, z in metres and remission.
        colours: uint8 [N, 3].
        radius: half the side of the square, metres.
        size: pixels of a side.

    Returns:
        uint8 [size, size, 3].
    """
    row, column = (np.floor((radius - points[:, axis]) / (2 * radius) * size).astype(np.int64) for axis in (0, 1))
    highest_last = np.argsort(points[:, 2], kind="stable")
    row, column, colours = row[highest_last], column[highest_last], colours[highest_last]
    image = np.full((size, size, 3), BACKGROUND)
    # The dots stay in the points' order, so that no dot covers one of a higher point.
    first = -(dot // 2)
    offsets = np.stack(np.meshgrid(range(first, first + dot), range(first, first + dot)), axis=-1).reshape(-1, 2)
    rows = (row[:, None] + offsets[:, 0]).ravel()
    columns = (column[:, None] + offsets[:, 1]).ravel()
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    image[rows[inside], columns[inside]] = np.repeat(colours, len(offsets), axis=0)[inside]
    return image


def pillars_image(values: np.ndarray, grid: PolarGrid, radius: float, size: int) -> np.ndarray:
    """Draw a map of pillars: each pixel shows the pillar that its centre lies in.

    `values` are float [R, P] at the grid's resolution or a coarser one that divides it, NaN where there is nothing.
    `radius` is half the side of the square in metres. The image is float32 [size, size], NaN outside the volume.
    """
    centres = (radius - (np.arange(size) + 0.5) * 2 * radius / size).astype(np.float32)
    x, y = np.meshgrid(centres, centres, indexing="ij")
    polar = to_polar(np.stack((x.ravel(), y.ravel(), np.zeros(size * size, np.float32)), axis=1))
    bins = bin_indices(polar, grid)[:, :2] * values.shape // grid.shape[:2]
    image = values[bins[:, 0], bins[:, 1]].astype(np.float32)
    image[(polar[:, 0] < grid.minimum[0]) | (polar[:, 0] > grid.maximum[0])] = np.nan
    return image.reshape(size, size)


def pillar_map(pillars: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values float [M] of pillars int64 [M, 2], (rho, phi), as a map, float32 of `shape`; NaN elsewhere."""
    image = np.full(shape, np.nan, np.float32)
    image[pillars[:, 0], pillars[:, 1]] = values
    return image
