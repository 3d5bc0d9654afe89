"""What somebody's files hold: columns, reflectances, points where nothing came back, label ids."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.base.errors import DataError
from common.scans.dataset import evenly
from common.scans.file_pattern import FilePattern
from common.scans.formats.files import SensorFiles
from common.scans.point_checks import BRIGHTEST
from common.scans.readers import Cloud, is_bag, raw_ids, read_cloud, read_label_file
from common.scans.readers.extras import unreadable
from common.scans.scan_files import read_bytes
from stage1_dump_teacher.data_checks.columns import (
    FEWEST,
    LABELS,
    REFLECTANCES,
    column_called,
    guess_width,
    name_columns,
    width_scores,
)
from stage1_dump_teacher.data_checks.found_files import FoundFiles
from stage1_dump_teacher.data_checks.survey import count_ids

LOOKED_AT = 20
"""Scans."""

FIRST_MESSAGES = 20
"""Of a bag."""


@dataclass
class FoundSensor:
    """What some scans hold.

    Attributes:
        files: where they are.
        columns: names, in their order.
        named: whether the files say the names themselves.
        reflectance, label_column: columns; None for none.
        topic: of bags.
        sequences: number of scans by sequence.
        scans, points, origin, missing: number of scans and points looked at, points at the origin, and with NaN.
        brightest: largest reflectance.
        raw_ids: points by label id.
        refused: what is wrong with scans and labels that cannot be read.
    """

    files: FoundFiles
    columns: list[str]
    named: bool
    reflectance: str | None
    label_column: str | None
    topic: str | None
    sequences: dict[str, int]
    scans: int = 0
    points: int = 0
    origin: int = 0
    missing: int = 0
    brightest: float = 0.0
    raw_ids: Counter[int] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def add(self, cloud: Cloud, labels: Path | None) -> None:
        """Count a scan, and its labels where it has any.

        Raises:
            DataError: one of them cannot be used.
        """
        points = cloud.points(self.reflectance)
        missing = ~np.isfinite(points[:, :3]).all(axis=1)
        # More is damage, which the doctor names; NaN is left out as well.
        bright = points[points[:, 3] <= BRIGHTEST, 3]
        self.scans += 1
        self.points += len(points)
        self.missing += int(missing.sum())
        self.origin += int((~points[:, :3].any(axis=1)).sum())
        self.brightest = max(self.brightest, float(bright.max(initial=0)))
        if labels is not None and labels.exists():
            raw = read_label_file(labels, len(points))
        elif labels is None and self.label_column is not None:
            raw = raw_ids(cloud.column(self.label_column), cloud.source)
        else:
            return
        self.raw_ids.update(count_ids(raw))

    def share(self, count: int) -> float:
        """Part of all points."""
        return count / max(self.points, 1)


def look_into(folder: Path, files: FoundFiles, topic: str | None = None) -> FoundSensor:
    """Read some of the scans, with a progress bar; of bags, one topic.

    Raises:
        DataError: none can be read, or their columns cannot be told.
    """
    options = {"scans": files.scans, "labels": files.labels, "topic": topic, "reflectance": None}
    reader = SensorFiles(folder, options)
    scans = reader.scans(reader.sequences())
    pattern = FilePattern(files.scans)
    names, named = columns_of([pattern.path(folder, scan) for scan in evenly(scans, LOOKED_AT)], topic)
    if not named:
        reader = SensorFiles(folder, options | {"columns": names})
    found = FoundSensor(
        files=files,
        columns=names,
        named=named,
        reflectance=column_called(names, REFLECTANCES),
        label_column=None if files.labels is not None else column_called(names, LABELS),
        topic=topic,
        sequences=Counter(scan.sequence for scan in scans),
    )
    # Of a bag the first messages will do: one in the middle is found by reading all before it.
    near = scans if "{frame}" in files.scans else [scan for scan in scans if int(scan.frame) < FIRST_MESSAGES]
    for scan in tqdm(evenly(near, LOOKED_AT), unit="scan", desc="new-dataset", leave=False):
        labels = None if files.labels is None else FilePattern(files.labels).path(folder, scan)
        try:
            found.add(reader.cloud(scan), labels)
        except DataError as error:
            found.refused.append(error.message)
    if not found.points:
        raise DataError(f"{folder}: none of the scans can be read; the first: {found.refused[0]}")
    return found


def columns_of(paths: list[Path], topic: str | None) -> tuple[list[str], bool]:
    """Columns of the first scan that can be read, and whether its file names them.

    Raises:
        DataError: none can be read; says why of the first.
    """
    refused: list[DataError] = []
    for path in paths:
        try:
            bare = None if is_bag(path) else bare_rows(path)
            names = name_columns(bare) if bare is not None else list(next(read_cloud(path, topic=topic)).columns)
            return names, bare is None
        except DataError as error:
            refused.append(error)
    raise refused[0]


def bare_rows(path: Path) -> np.ndarray | None:
    """The numbers of a file that does not name its columns, float [N, C]; None where it does.

    Raises:
        DataError: it cannot be read, or its columns cannot be told.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        with unreadable(path):
            array: np.ndarray = np.load(path, allow_pickle=False)
        if array.dtype.names:
            return None
        if array.ndim != 2 or array.shape[1] < FEWEST or not len(array):
            raise DataError(f"{path}: an array of shape {list(array.shape)}; scans have one row a point: x, y, z, ...")
        return array
    if suffix != ".bin":
        return None
    data = read_bytes(path)
    numbers = np.frombuffer(data[: len(data) // 4 * 4], "<f4")
    width = guess_width(width_scores(numbers)) if len(data) % 4 == 0 else None
    if width is None:
        raise DataError(
            f"{path}: {len(data)} bytes that do not look like rows of float32 numbers (x, y, z, ...). Convert the "
            "scans to .npy, or write the dataset's YAML file by hand: docs/own-sensor.md."
        )
    return numbers.reshape(-1, width)
