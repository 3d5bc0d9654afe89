"""Scans of one's own sensor: files that `common.scans.readers` reads, found by a pattern. See docs/own-sensor.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from common.base.config import Settings, parse_settings
from common.base.errors import DataError
from common.scans.file_pattern import FilePattern
from common.scans.point_checks import check_points
from common.scans.readers import BAG_SUFFIXES, POINT_COLUMNS, Bag, Cloud, is_bag, raw_ids, read_file, read_label_file
from common.scans.scan_files import ScanFiles, is_there
from common.scans.scan_id import ScanId

MOST_KEPT = 16
"""Scans that are kept in memory after they were read."""

NOT_FINITE = (
    "Where x, y or z are NaN because nothing came back, leave such points out: options.drop_origin: true, or "
    "--file-option drop_origin=true; else restore the file."
)
REFLECTANCE_NOT_FINITE = (
    "Their x, y and z are numbers, so drop_origin keeps them: restore the file, or do without reflectance "
    "(options.reflectance: null, or --file-option reflectance=null)."
)


def _pattern(text: str) -> str:
    return FilePattern(text).text


Pattern = Annotated[str, AfterValidator(_pattern)]


class FilesSettings(Settings):
    """The `options` of a dataset whose format is `files`.

    Attributes:
        scans: pattern of the scans below DATA, with {frame} and perhaps {sequence} (00 where it is absent), such as
            `sequences/{sequence}/velodyne/{frame}.bin`. Without {frame}, ROS bags: `{sequence}.bag`, `{sequence}.mcap`,
            or folders with a `metadata.yaml`. Their frames are messages, numbered 000000, 000001, ...
        labels: pattern of the label files, None for none.
        label_column: column of the scans that holds the labels, instead of files.
        columns: of `.bin` (float32), and of `.npy` without names of its own; other files name their columns.
        reflectance: its column, None for none (0 everywhere).
        reflectance_scale: reflectances are multiplied with it.
        drop_origin: leave out points at (0, 0, 0), and those with NaN or infinity in x, y or z: nothing came back.
            Predictions keep the order and number of the points on disk, with "unlabelled" there.
        topic: of a bag, None for its only PointCloud2 topic.
    """

    scans: Pattern
    labels: Pattern | None = None
    label_column: str | None = None
    columns: list[str] = [*POINT_COLUMNS]
    reflectance: str | None = "intensity"
    reflectance_scale: float = Field(1.0, gt=0)
    drop_origin: bool = False
    topic: str | None = None

    @field_validator("columns")
    @classmethod
    def _places(cls, columns: list[str]) -> list[str]:
        lacking = [name for name in ("x", "y", "z") if name not in columns]
        if lacking or len(set(columns)) < len(columns):
            raise ValueError("each column needs a name of its own, and three of them are called x, y and z")
        return columns

    @model_validator(mode="after")
    def _agrees(self) -> "FilesSettings":
        bags = "{frame}" not in self.scans
        if bags and Path(self.scans).suffix not in ("", *BAG_SUFFIXES):
            raise ValueError(f"scans: '{self.scans}' needs {{frame}} where the number of a scan stands")
        if self.labels is not None and self.label_column is not None:
            raise ValueError("labels and label_column both say where labels are; keep one of them")
        if self.labels is not None and "{frame}" not in self.labels:
            raise ValueError(f"labels: '{self.labels}' needs {{frame}} where the number of a scan stands")
        if self.scans.endswith(".bin") and self.reflectance not in (None, *self.columns):
            raise ValueError(
                f"reflectance: '{self.reflectance}' is not among the columns {self.columns}; null for none"
            )
        return self


class SensorScan(NamedTuple):
    """A scan as read.

    Attributes:
        points: float32 [N, 4], without those that were dropped.
        kept: bool [M], which points of the file these are; None for all.
        labels: uint32 [N], None where the file holds none.
    """

    points: np.ndarray
    kept: np.ndarray | None
    labels: np.ndarray | None


class SensorFiles(ScanFiles):
    """Scans of one's own sensor, see `FilesSettings`."""

    name = "files"

    def __init__(self, root: Path, options: Mapping[str, Any], empty: bool = False) -> None:
        """See `ScanFiles`; `empty`: a scan may be empty, or hold nothing but points that are dropped."""
        self.root, self.empty = root, empty
        self.settings = parse_settings(FilesSettings, dict(options), "options of the dataset's format 'files'")
        self._scans = FilePattern(self.settings.scans)
        self._labels = None if self.settings.labels is None else FilePattern(self.settings.labels)
        self._in_bags = "{frame}" not in self.settings.scans
        self._bags: dict[str, Bag] = {}
        self._labelled: dict[str, bool] = {}
        # Dataset.read asks for points and labels of a scan one after the other, and predictions, some scans later, for
        # what was dropped.
        self._latest: dict[ScanId, SensorScan] = {}

    def sequences(self) -> list[str]:
        in_bags = self._in_bags
        found = sorted({scan.sequence for scan in self._scans.found(self.root) if not in_bags or is_bag(scan.path)})
        if not found:
            what = "bag" if in_bags else "file"
            raise DataError(
                f"{self.root}: no {what} fits the pattern '{self.settings.scans}' (options.scans of the dataset's YAML "
                "file). Check --data and the pattern."
            )
        return found

    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        scans: list[ScanId] = []
        for sequence in sequences:
            if self._in_bags:
                frames = [f"{index:06d}" for index in range(len(self._bag(sequence)))]
            else:
                found = self._scans.found(self.root, sequence)
                frames = [one.frame for one in (self._scans.without(self._labels, found) if self._labels else found)]
            if not frames:
                raise self.missing(f"{self.root}: no scans of sequence {sequence}, pattern '{self.settings.scans}'")
            scans += [ScanId(sequence, frame) for frame in frames]
        return scans

    def left_out(self, sequences: Iterable[str]) -> list[str]:
        hidden: list[Path] = []
        for sequence in sequences:
            self._scans.found(self.root, sequence, hidden)
        return sorted({str(path.relative_to(self.root)) for path in hidden})

    def points(self, scan: ScanId) -> np.ndarray:
        return self._read(scan).points

    def has_labels(self, scan: ScanId) -> bool:
        """See `ScanFiles`. Where a column holds them, the first scan that is asked for speaks for its sequence."""
        if self._labels is not None:
            return is_there(self._labels.path(self.root, scan))
        column = self.settings.label_column
        if column is not None and scan.sequence not in self._labelled:
            self._labelled[scan.sequence] = column in self.cloud(scan).columns
        return column is not None and self._labelled[scan.sequence]

    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        if self._labels is None:
            labels = self._recent(scan).labels
            if labels is None:
                raise DataError(f"scan {scan}: no column '{self.settings.label_column}', which other scans have.")
            return labels
        kept = self._recent(scan).kept if self.settings.drop_origin else None
        labels = read_label_file(self._labels.path(self.root, scan), points if kept is None else len(kept))
        return labels if kept is None else labels[kept]

    def restored(self, scan: ScanId, labels: np.ndarray) -> np.ndarray:
        kept = self._recent(scan).kept if self.settings.drop_origin else None
        if kept is None:
            return labels
        whole = np.zeros(len(kept), labels.dtype)
        whole[kept] = labels
        return whole

    def _recent(self, scan: ScanId) -> SensorScan:
        return self._latest.get(scan) or self._read(scan)

    def _read(self, scan: ScanId) -> SensorScan:
        cloud, settings = self.cloud(scan), self.settings
        kept: np.ndarray | None = None
        labels: np.ndarray | None = None
        # A message without points may be one without fields.
        if self.empty and not len(cloud) and (cloud.columns or self._in_bags):
            points, labels = np.empty((0, 4), np.float32), np.empty(0, np.uint32)
        else:
            points = cloud.points(settings.reflectance, settings.reflectance_scale)
        if settings.label_column is not None and settings.label_column in cloud.columns:
            labels = raw_ids(cloud.columns[settings.label_column], f"{cloud.source}, column {settings.label_column}")
        if settings.drop_origin:
            # 0 at the origin, NaN or infinite where a coordinate is: much faster than asking each of them.
            away = np.abs(points[:, 0]) + np.abs(points[:, 1]) + np.abs(points[:, 2])
            kept = (away > 0) & (away < np.inf)
            points, labels = points[kept], None if labels is None else labels[kept]
            if not len(points) and not self.empty:
                raise DataError(
                    f"{cloud.source}: all {len(kept)} points are at the origin, NaN or infinite. Exclude the scan."
                )
        check_points(points, cloud.source, REFLECTANCE_NOT_FINITE if settings.drop_origin else NOT_FINITE)
        found = SensorScan(points, kept, labels)
        self._latest[scan] = found
        for oldest in [*self._latest][:-MOST_KEPT]:
            self._latest.pop(oldest, None)
        return found

    def cloud(self, scan: ScanId) -> Cloud:
        """All columns of a scan, as its file has them.

        Raises:
            DataError: it cannot be read.
        """
        if self._in_bags:
            if not scan.frame.isdecimal():
                raise DataError(f"scan {scan}: scans of a bag are numbered, such as {scan.sequence}/000000.")
            return self._bag(scan.sequence).read(int(scan.frame))
        return read_file(self._scans.path(self.root, scan), self.settings.columns)

    def _bag(self, sequence: str) -> Bag:
        if sequence not in self._bags:
            path = self._scans.path(self.root, ScanId(sequence, "0"))
            self._bags[sequence] = Bag(path, self.settings.topic)
        return self._bags[sequence]
