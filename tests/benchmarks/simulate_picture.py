"""The picture of `bench_simulate`: real and simulated scans and their statistics side by side."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.base.files import write_atomically
from common.scans.label_map import LabelMap

REAL, SIMULATED = "#3b6fb5", "#e8892b"
SIDE = 40.0
"""Half the side of the views from above, metres."""

IMAGE_SHAPE = (64, 1100)
COLOURS = 96
"""Of the written file: few enough that it stays small."""


@dataclass(frozen=True)
class Compared:
    """Statistics of real and simulated scans, see `bench_simulate.statistics_of`.

    Attributes:
        real: of the real ones.
        simulated: of the simulated ones.
        labels: names of the bins of each histogram.
    """

    real: dict[str, Any]
    simulated: dict[str, Any]
    labels: dict[str, list[str]]


def draw(
    path: Path,
    compared: Compared,
    real_clouds: list[np.ndarray],
    simulated_clouds: list[np.ndarray],
    label_map: LabelMap,
) -> None:
    """Write scans from above, as range images, and bars of the statistics.

    Args:
        path: gets a PNG.
        compared: the statistics.
        real_clouds: [N, 5] x, y, z in metres, remission and class.
        simulated_clouds: the same.
        label_map: names and colours of the classes.
    """
    colours = np.array([info.colour for info in label_map.classes]) / 255
    colours[0] = 0.5
    shown = [(cloud, "real") for cloud in real_clouds] + [(cloud, "simulated") for cloud in simulated_clouds]
    figure = Figure(figsize=(13, 14.5), dpi=80, layout="constrained")
    heights = [3.3, *[0.75] * len(shown), 1.9, 1.9, 2.2]
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    above = rows[0].subgridspec(1, len(shown))
    for place, (cloud, title) in enumerate(shown):
        from_above(figure.add_subplot(above[place]), cloud, colours, title)
        axis = figure.add_subplot(rows[1 + place], xticks=[], yticks=[], ylabel=title)
        axis.imshow(range_image(cloud, colours), aspect="auto", interpolation="nearest")
    upper, lower = rows[-3].subgridspec(1, 2), rows[-2].subgridspec(1, 2)
    rings(figure.add_subplot(upper[0]), compared)
    bars(figure.add_subplot(upper[1]), compared, "range_shares", "% of points by range")
    bars(figure.add_subplot(lower[0]), compared, "voxel_shares", "% of voxels by points in them")
    bars(figure.add_subplot(lower[1]), compared, "pillar_shares", "% of pillars by points in them")
    axis = figure.add_subplot(rows[-1])
    bars(axis, compared, "class_shares", "% of points by class; real: all of SemanticKITTI")
    axis.set_yscale("log")
    write_small(path, figure)


def from_above(axis: Axes, cloud: np.ndarray, colours: np.ndarray, title: str) -> None:
    """Points from above, higher ones on top."""
    cloud = cloud[np.argsort(cloud[:, 2])]
    axis.scatter(cloud[:, 0], cloud[:, 1], s=0.3, c=colours[cloud[:, 4].astype(int)], linewidths=0)
    axis.set(title=title, xticks=[], yticks=[], facecolor="black", xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE))
    axis.set_aspect("equal")


def range_image(cloud: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Classes by elevation and azimuth, nearest points on top, float [64, 1100, 3]."""
    height, width = IMAGE_SHAPE
    cloud = cloud[np.argsort(-np.linalg.norm(cloud[:, :3], axis=1))]
    elevation = np.degrees(np.arctan2(cloud[:, 2], np.linalg.norm(cloud[:, :2], axis=1)))
    azimuth = np.arctan2(cloud[:, 1], cloud[:, 0])
    image = np.zeros((height, width, 3))
    row = np.clip((3 - elevation) / 28 * height, 0, height - 1).astype(int)
    column = np.clip((np.pi - azimuth) / (2 * np.pi) * width, 0, width - 1).astype(int)
    image[row, column] = colours[cloud[:, 4].astype(int)]
    return image


def rings(axis: Axes, compared: Compared) -> None:
    """Points of each beam."""
    for table, colour, name in ((compared.real, REAL, "real"), (compared.simulated, SIMULATED, "simulated")):
        axis.plot(table["ring_points"], color=colour, label=name)
    axis.set(title="points per ring, from the highest beam to the lowest", ylim=(0, None))
    axis.margins(x=0.01)
    axis.legend()


def bars(axis: Axes, compared: Compared, key: str, title: str) -> None:
    """A histogram of both, side by side."""
    places = np.arange(len(compared.labels[key]))
    for shift, table, colour, name in (
        (-0.2, compared.real, REAL, "real"),
        (0.2, compared.simulated, SIMULATED, "simulated"),
    ):
        axis.bar(places + shift, 100 * np.array(table[key]), 0.4, color=colour, label=name)
    axis.set_xticks(places, compared.labels[key], rotation=25, ha="right")
    axis.set_title(title)
    axis.margins(x=0.01)
    axis.legend()


def write_small(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG with a palette."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    palette = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    write_atomically(path, small.getvalue())
