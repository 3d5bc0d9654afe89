"""Scans of one's own sensor: any files that `common.scans.readers` reads, found by a pattern. See docs/own-sensor.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_validator

from common.base.config import Settings, parse_settings
from common.base.errors import DataError
from common.scans.file_pattern import FilePattern
from common.scans.point_checks import check_points
from common.scans.readers import BAG_SUFFIXES, Bag, Cloud, is_bag, raw_ids, read_file, read_label_file
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId


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
        drop_origin: leave out points at (0, 0, 0) and those with NaN: nothing came back. Predictions keep the order and
            number of the points on disk, with "unlabelled" there.
        topic: of a bag, None for its only PointCloud2 topic.
    """

    scans: str
    labels: str | None = None
    label_column: str | None = None
    columns: list[str] = ["x", "y", "z", "intensity"]
    reflectance: str | None = "intensity"
    reflectance_scale: float = Field(1.0, gt=0)
    drop_origin: bool = False
    topic: str | None = None

    @field_validator("scans", "labels")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        if text is not None:
            FilePattern(text)
        return text

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
            raise ValueError(f"reflectance: '{self.reflectance}' is not among the columns {self.columns}; null for none")
        return self
