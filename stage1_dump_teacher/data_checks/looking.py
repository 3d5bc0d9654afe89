"""The doctor's look at scans: measured, compared with what the teacher was trained on, drawn; and a grid that fits."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import yaml

from common.base.config import load_settings
from common.base.files import replacing, write_atomically
from common.scans.dataset import Dataset, GridSettings, VolumeSettings, evenly
from common.scans.file_pattern import FilePattern
from common.scans.formats.files import SensorFiles
from common.scans.formats.semantic_kitti import SemanticKitti, scan_path
from common.scans.polar_grid import to_polar
from common.scans.scan_files import read_bytes
from common.scans.scan_id import ScanId
from stage1_dump_teacher.data_checks.columns import contradicted
from stage1_dump_teacher.data_checks.judgement import Line, judged
from stage1_dump_teacher.data_checks.survey import SAMPLED_SCANS, Distribution, Measured, Survey, measure, outside
from stage1_dump_teacher.device_checks import Check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED = Path("semantic_kitti")
"""What published teachers were trained on: a file in configs/references/."""

TRAINED_ON = "trained_on.yaml"
"""The same of a teacher of one's own, beside its checkpoint."""

RADIUS = 60.0
"""Metres of the view from above, to each side."""

BIN = 0.1
"""Metres along rho, about PolarNet's."""

RADIAL_STEP, MOST_RADIAL = 16, 640
AZIMUTH_BINS, HEIGHT_BINS = 360, 32
"""The published ones."""

BELOW_GROUND, ABOVE_GROUND = 1.0, 3.0
"""Metres that the volume reaches below and above the ground at least, about PolarNet's."""


def reference_of(teacher: Path | None, named: Path | None = None) -> Survey:
    """What a teacher was trained on: the file that is named, that beside its checkpoint, or what published ones saw.

    Raises:
        SettingsError: it cannot be used.
    """
    beside = None if teacher is None else teacher.parent / TRAINED_ON
    own = beside if beside is not None and beside.is_file() else PUBLISHED
    return load_settings(Survey, named or own)


def look(
    dataset: Dataset, grid: GridSettings, reference: Survey, picture: Path | None = None, kept: Path | None = None
) -> Iterator[Line]:
    """Lines of the doctor's table about scans, put on a grid and compared with what the teacher was trained on.

    A file `picture` gets a PNG picture of them, a file `kept` what was measured, as YAML.

    Raises:
        DataError: no scan can be used at all.
    """
    scans = dataset.files.scans(dataset.files.sequences())
    columns = check_columns(dataset, scans[0])
    if columns is not None:
        yield "columns", columns
        if columns.status == "problem":
            return
    measured, found = surveyed(dataset, scans, grid)
    yield "compared", Check("ok", f"{measured.scans} of the scans with the teacher's: {reference.source}")
    if measured.refused:
        text = f"{len(measured.refused)} of {measured.scans + len(measured.refused)} scans cannot be read"
        yield "reading", Check("problem", f"{text}, the first: {measured.refused[0]}")
    yield from judged(found, reference, dataset.label_map)
    if kept is not None:
        write_survey(found, kept)
        yield "reference", Check("ok", f"written to {kept}")
    if picture is not None:
        draw_survey(measured.kept[len(measured.kept) // 2], found, reference, grid, picture)
        yield "picture", Check("ok", str(picture))
    fitting, share = fitting_grid(np.concatenate(measured.kept), found.ground)
    click.echo(
        f"\nA grid whose volume holds {share:.1%} of these points, for the settings of train-teacher, the dump and\n"
        "experiments alike; a published checkpoint needs the one that it was trained on:"
    )
    click.echo("\n".join(f"  {line}" for line in grid_lines(fitting)) + "\n")


def surveyed(dataset: Dataset, scans: list[ScanId], grid: GridSettings) -> tuple[Measured, Survey]:
    """Measure up to fifty of some scans.

    Raises:
        DataError: none of them can be used.
    """
    measured = measure(dataset, evenly(scans, SAMPLED_SCANS), grid.grid())
    return measured, measured.summary(grid, f"{dataset.label_map.name}, {measured.scans} of {len(scans)} scans")


def write_survey(survey: Survey, path: Path) -> None:
    """Write a survey, so that `reference_of` reads it back."""
    values = survey.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    write_atomically(path, text.encode())


def check_columns(dataset: Dataset, scan: ScanId) -> Check | None:
    """Whether a file of bare numbers has as many columns as it is read with; None where files say it themselves."""
    files = dataset.files
    if isinstance(files, SemanticKitti):
        path, width = scan_path(files.root, scan), 4
    elif isinstance(files, SensorFiles) and files.settings.scans.endswith(".bin"):
        path, width = FilePattern(files.settings.scans).path(files.root, scan), len(files.settings.columns)
    else:
        return None
    data = read_bytes(path)
    other = contradicted(np.frombuffer(data[: len(data) // 4 * 4], "<f4"), width)
    if other is None:
        return Check("ok", f"{width} in each point")
    return Check(
        "problem",
        f"{path} looks like {other} numbers a point, and is read as {width}",
        "Name the columns: options.columns of the format files. polar-distill new-dataset writes such a description.",
    )


def fitting_grid(points: np.ndarray, ground: float | None) -> tuple[GridSettings, float]:
    """A grid for points like these, and the share of them in its volume.

    Args:
        points: float32 [N, 4], N > 0, none at the origin.
        ground: its height, metres.
    """
    polar = to_polar(points[:, :3])
    nearest, farthest = np.percentile(polar[:, 0], (0.2, 98))
    lowest, highest = np.percentile(polar[:, 2], (0.5, 98))
    if ground is not None:
        lowest, highest = min(lowest, ground - BELOW_GROUND), max(highest, ground + ABOVE_GROUND)
    start, stop = float(np.floor(nearest)), float(5 * np.ceil((farthest + 1e-3) / 5))
    bottom, top = float(np.floor(2 * lowest) / 2), float(np.ceil(2 * highest + 1e-3) / 2)
    radial = int(np.clip(round((stop - start) / BIN / RADIAL_STEP), 1, MOST_RADIAL // RADIAL_STEP)) * RADIAL_STEP
    grid = GridSettings(
        volume=VolumeSettings(rho=(start, stop), z=(bottom, top)), shape=(radial, AZIMUTH_BINS, HEIGHT_BINS)
    )
    return grid, float(1 - outside(polar, grid.grid()).mean())


def grid_lines(grid: GridSettings) -> list[str]:
    """A grid with a volume of its own as lines of YAML."""
    volume = grid.volume
    assert isinstance(volume, VolumeSettings)
    return [
        "grid:",
        f"  volume: {{rho: [{volume.rho[0]:g}, {volume.rho[1]:g}], z: [{volume.z[0]:g}, {volume.z[1]:g}]}}",
        f"  shape: [{', '.join(map(str, grid.shape))}]     # bins along rho, phi, z",
    ]


def draw_survey(points: np.ndarray, found: Survey, usual: Survey, grid: GridSettings, path: Path) -> None:
    """Draw a scan, float32 [N, 4], and what was measured beside what the teacher was trained on, as a PNG file."""
    # Without pyplot there is no window system to ask for and no state to leave behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    places = figure.subplot_mosaic([["scan", "distance"], ["scan", "height"], ["scan", "reflectance"]])
    draw_scan(places["scan"], points, grid)
    for name, unit in (("distance", "m"), ("height", "m"), ("reflectance", "")):
        axes = places[name]
        for survey, label, fill in ((found, "these scans", True), (usual, "teacher", False)):
            spread: Distribution = getattr(survey, name)
            edges = np.linspace(spread.start, spread.stop, len(spread.shares) + 1)
            axes.stairs(spread.shares, edges, label=label, fill=fill, alpha=0.5 if fill else 1.0)
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
