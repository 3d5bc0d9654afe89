"""Paris-Lille-3D (Roynard et al., IJRR 2018) as scans: windows of time from its PLY files, around the sensor's path.

Its clouds are whole streets. PolarNet's authors cut windows of 0.2 s, one every 0.05 s, and map some 50 classes to the
benchmark's 10 with the dataset's `coarse_classes.xml`. They centre a window on the mean of its points; here it is
centred on the sensor, whose position the files hold for every point.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import click
import numpy as np
from tqdm import tqdm

from common.base.command_options import path_type
from common.base.commands import Command
from common.base.errors import DataError
from common.scans.formats.semantic_kitti import write_scan
from common.scans.readers import Cloud, read_file
from common.scans.scan_id import ScanId

TIME, REFLECTANCE, CLASS = "GPS_time", "reflectance", "class"
PLACE, SENSOR = ("x", "y", "z"), ("x_origin", "y_origin", "z_origin")
COARSE = 10
"""Classes of the benchmark, 0 is unclassified."""

FEWEST = 1000
"""Points of a window; PolarNet's authors leave out those with fewer."""

MOST_WINDOWS = 10_000_000
BRIGHTEST = 255
"""Reflectance as stored is a byte; scans hold it as SemanticKITTI's do, in 0..1."""


@click.command("convert-paris-lille", cls=Command)
@click.argument("files", nargs=-1, required=True, type=path_type, metavar="PLY...")
@click.option("--to", "folder", type=path_type, required=True, help="Folder that gets sequences/NAME/ of each file.")
@click.option("--classes", type=path_type, help="The dataset's coarse_classes.xml; files with classes 0..9 need none.")
@click.option("--window", type=click.FloatRange(min=0, min_open=True), default=0.2, help="Seconds of a scan.")
@click.option("--step", type=click.FloatRange(min=0, min_open=True), default=0.05, help="Seconds between two scans.")
def convert_paris_lille(
    files: tuple[Path, ...], folder: Path, classes: Path | None, window: float, step: float
) -> None:
    """Cut the PLY files of Paris-Lille-3D into scans in the SemanticKITTI layout.

    A scan is a window of time around the sensor. Use the files with all fields (GPS_time, x_origin, ...). The settings
    of the result are configs/datasets/paris_lille.yaml. Windows of 0.2 s every 0.05 s are PolarNet's; with --step 0.2
    no point is in two scans.

    \b
    Examples:
      polar-distill convert-paris-lille Lille1.ply Lille2.ply Paris.ply --classes coarse_classes.xml --to data/paris
      polar-distill train-teacher --data data/paris --set dataset=paris_lille
    """
    table = None if classes is None else read_classes(classes)
    names = [path.stem for path in files]
    for name in names:
        if (folder / "sequences" / name).exists():
            raise DataError(f"{folder / 'sequences' / name}: is there already. Remove it, or name another folder.")
        if names.count(name) > 1:
            raise DataError(f"several files are called {name}, as their scans' folders are. Rename all but one.")
    for path in files:
        cloud = read_file(path)
        windows = cut(cloud, window, step)
        for frame, rows in enumerate(tqdm(windows, desc=path.stem, unit="scan")):
            labels = coarse_labels(cloud.columns[CLASS][rows], table, path) if CLASS in cloud.columns else None
            write_scan(folder, ScanId(path.stem, f"{frame:06d}"), window_points(cloud, rows), labels)
        click.echo(f"{path}: {len(windows)} scans in {folder / 'sequences' / path.stem}")


def read_classes(path: Path) -> dict[int, int]:
    """Coarse class of each class id, from the dataset's `coarse_classes.xml`.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        found = {
            int(entry.attrib["id"]): int(entry.attrib["coarse"]) for entry in ElementTree.parse(path).iter("class")
        }
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read as coarse_classes.xml ({type(error).__name__}: {error}). Each class needs an "
            "id and a coarse, as in the dataset's own file."
        ) from error
    if not found or not set(found.values()) <= set(range(COARSE)):
        raise DataError(f"{path}: lists {len(found)} classes; some are needed, with coarse ids in 0..{COARSE - 1}.")
    return found


def coarse_labels(classes: np.ndarray, table: dict[int, int] | None, source: Path) -> np.ndarray:
    """The benchmark's classes 0..9, [N], of class ids [N]; `table` is None where the file has coarse classes itself.

    Raises:
        DataError: an id has no coarse class; names `source`.
    """
    known = {coarse: coarse for coarse in range(COARSE)} if table is None else table
    ids, place = np.unique(classes, return_inverse=True)
    unknown = [int(one) for one in ids if int(one) not in known]
    if unknown:
        raise DataError(
            f"{source}: classes {unknown} are no coarse classes (0..{COARSE - 1}), and --classes does not list them. "
            "Name the dataset's coarse_classes.xml with --classes."
        )
    return np.array([known[int(one)] for one in ids])[place.reshape(-1)]


def cut(cloud: Cloud, window: float, step: float) -> list[np.ndarray]:
    """Rows of the points in each window of time, int64 [K] in the order of time.

    Windows of fewer than 1000 points are left out, and those of the same points as another.

    Args:
        cloud: with its times in seconds.
        window: seconds of each.
        step: seconds from one's beginning to the next one's.

    Raises:
        DataError: there are no times, or no windows that fit.
    """
    time = np.asarray(cloud.column(TIME), np.float64)
    if not np.isfinite(time).all():
        raise DataError(f"{cloud.source}: some values of {TIME} are NaN or infinite. Restore the file.")
    order = np.argsort(time, kind="stable")
    time = time[order]
    duration = time[-1] - time[0] if len(time) else 0.0
    if duration / step > MOST_WINDOWS:
        raise DataError(f"{cloud.source}: spans {duration:.3g} s by {TIME}, too many windows; is it in seconds?")
    # In whole microseconds, windows that follow each other share no point.
    ticks, length, way = np.rint((time - time[:1]) * 1e6), round(window * 1e6), max(round(step * 1e6), 1)
    starts = way * np.arange(math.ceil(max(duration - window, 0) / step) + 1)
    bounds = np.stack([np.searchsorted(ticks, starts), np.searchsorted(ticks, starts + length)], axis=1)
    bounds = np.unique(bounds[bounds[:, 1] - bounds[:, 0] >= FEWEST], axis=0)
    if not len(bounds):
        raise DataError(
            f"{cloud.source}: no window of {window} s has {FEWEST} points ({len(time)} points in {duration:.3g} s). "
            "Choose a longer --window."
        )
    return [order[start:end] for start, end in bounds]


def window_points(cloud: Cloud, rows: np.ndarray) -> np.ndarray:
    """Some points of a cloud around their sensor, float32 [N, 4]: x, y, z in metres, reflectance in 0..1.

    The middle is the mean position of the sensor; of the points where the file does not hold the sensor's.
    """
    place, reflectance = _columns(cloud, PLACE, rows), _columns(cloud, [REFLECTANCE], rows) / BRIGHTEST
    sensor = _columns(cloud, SENSOR, rows) if all(name in cloud.columns for name in SENSOR) else place
    return np.hstack([place - sensor.mean(axis=0), reflectance]).astype(np.float32)


def _columns(cloud: Cloud, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
    return np.stack([cloud.column(name)[rows] for name in names], axis=1).astype(np.float64)
