"""Some scans as a picture: one from above, and how far, high and bright points are beside what the teacher knows."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.base.files import replacing
from common.scans.dataset import GridSettings
from stage1_dump_teacher.data_checks.survey import Distribution, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADIUS = 60.0
"""Metres of the view from above, to each side."""


def draw_survey(points: np.ndarray, found: Survey, usual: Survey, grid: GridSettings, path: Path) -> None:
    """Draw a scan, float32 [N, 4], and what was measured beside what the teacher was trained on, as a PNG file."""
    # Without pyplot there is no window system to ask for and no state to leave behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    places = figure.subplot_mosaic([["scan", "distance"], ["scan", "height"], ["scan", "reflectance"]])
    draw_scan(places["scan"], points, grid)
    for name, unit in (("distance", "m"), ("height", "m"), ("reflectance", "")):
        axes = places[name]
        draw_shares(axes, getattr(found, name), "these scans", fill=True)
        draw_shares(axes, getattr(usual, name), "teacher", fill=False)
        axes.set(ylabel="share of points", xlabel=f"{name} {unit}".strip())
    for survey, colour in ((found, "tab:blue"), (usual, "tab:orange")):
        if survey.ground is not None:
            places["height"].axvline(survey.ground, color=colour, linestyle="--")
    places["distance"].legend(frameon=False)
    figure.suptitle(found.source)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def draw_scan(axes: "Axes", points: np.ndarray, grid: GridSettings) -> None:
    """A scan from above, coloured by height, and the borders of the volume."""
    lowest_first = points[np.argsort(points[:, 2], kind="stable")]
    low, high = np.percentile(points[:, 2], (2, 98))
    axes.scatter(
        -lowest_first[:, 1], lowest_first[:, 0], s=0.3, c=lowest_first[:, 2], vmin=low, vmax=high, rasterized=True
    )
    volume, angle = grid.grid(), np.linspace(0, 2 * np.pi, 200)
    for rho in (volume.minimum[0], volume.maximum[0]):
        axes.plot(rho * np.cos(angle), rho * np.sin(angle), color="tab:red", linewidth=1)
    axes.set(aspect="equal", xlim=(-RADIUS, RADIUS), ylim=(-RADIUS, RADIUS))
    axes.set(title="one scan from above, x up; red: the volume")


def draw_shares(axes: "Axes", values: Distribution, label: str, fill: bool) -> None:
    """A histogram."""
    edges = np.linspace(values.start, values.stop, len(values.shares) + 1)
    axes.stairs(values.shares, edges, label=label, fill=fill, alpha=0.5 if fill else 1.0)
