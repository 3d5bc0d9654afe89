"""A dataset: which scans there are, and a scan with its labels on a grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
from pydantic import Discriminator, Field, NonNegativeFloat, Tag, field_validator

from common.base.config import Settings
from common.base.errors import DataError, SettingsError
from common.base.named import named_class
from common.base.text import printable, shortened
from common.scans.label_map import LabelMap, load_label_map
from common.scans.polar_grid import PolarGrid, VoxelisedScan, shape_problem, voxelise
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId
from common.scans.view import View, apply_view

FORMATS = "common.scans.formats"

Item = TypeVar("Item")


class VolumeSettings(Settings):
    """A volume of one's own, a full circle around the sensor: smallest and largest distance from its axis, and smallest
    and largest height, metres."""

    rho: tuple[NonNegativeFloat, NonNegativeFloat]
    z: tuple[float, float]

    @field_validator("rho", "z")
    @classmethod
    def _rises(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] >= limits[1]:
            raise ValueError("the first is the smallest value, the second the largest")
        return limits


class GridSettings(Settings):
    """The polar grid that teacher and student share.

    Attributes:
        volume: `polarnet` (rho 3..50 m, z -3..1.5 m), `cylinder3d` (rho 0..50 m, z -4..2 m), `nuscenes` (rho 0..50 m,
            z -5..3 m), or one of your own: `{rho: [3, 50], z: [-3, 1.5]}`.
        shape: bins along rho, phi, z.
    """

    volume: Annotated[
        Annotated[str, Tag("name")] | Annotated[VolumeSettings, Tag("limits")],
        Discriminator(lambda volume: "limits" if isinstance(volume, dict | VolumeSettings) else "name"),
    ] = "polarnet"
    shape: tuple[int, int, int] = Field((480, 360, 32), description="bins along rho, phi, z")

    @field_validator("shape")
    @classmethod
    def _usable(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        problem = shape_problem(shape)
        if problem:
            raise ValueError(problem)
        return shape

    def grid(self) -> PolarGrid:
        """The grid that these settings describe."""
        if isinstance(self.volume, str):
            return PolarGrid.named(self.volume, self.shape)
        (nearest, farthest), (lowest, highest) = self.volume.rho, self.volume.z
        return PolarGrid(self.shape, (nearest, -np.pi, lowest), (farthest, np.pi, highest))

    def check_fits(self, label_map: LabelMap) -> None:
        """Refuse a named volume that the dataset's published checkpoints were not trained on.

        Raises:
            SettingsError: says which it may be.
        """
        known = label_map.volumes
        if known and isinstance(self.volume, str) and self.volume not in known:
            raise SettingsError(
                f"grid.volume: {self.volume} is not the volume of checkpoints of '{label_map.name}'. Add --set "
                f"grid.volume={known[0]}; for a teacher of your own on another volume, list that under "
                "volumes in a copy of the dataset's YAML file."
            )


class ScanSelection(NamedTuple):
    """Scans in order, and one line for each kind of thing that was left out."""

    scans: list[ScanId]
    notes: list[str]


@dataclass(frozen=True)
class LabelledScan:
    """A scan as read from disk.

    Attributes:
        points: float32 [N, 4].
        labels: uint8 [N] training labels, or None where the scan has no label file.
        name: of the scan, such as `00/000000`; empty for points that are no scan of a dataset.
    """

    points: np.ndarray
    labels: np.ndarray | None
    name: str = ""


@dataclass(frozen=True)
class Dataset:
    """Scans on disk and what their labels mean."""

    files: ScanFiles
    label_map: LabelMap

    @classmethod
    def open(cls, root: Path, label_map: LabelMap) -> "Dataset":
        """The dataset below a folder, in the format that the label map names: a file of `FORMATS`, or your own class.

        Raises:
            SettingsError: there is no such format, or it does not have the options that the label map gives.
        """
        files = named_class(label_map.format, FORMATS, ScanFiles, "format of a dataset")
        return cls(files(root, label_map.options), label_map)

    @property
    def root(self) -> Path:
        """The folder of the scans."""
        return self.files.root

    @property
    def classes(self) -> int:
        """Number of classes, "unlabelled" included."""
        return len(self.label_map.classes)

    def select(self, names: Iterable[str]) -> ScanSelection:
        """Scans of splits and sequences, in order.

        A sequence asked for itself must have scans. Of a split, the sequences that have some are taken and the others
        reported, since people often keep a part of a dataset on disk.

        Raises:
            DataError: nothing is there, a sequence asked for itself is missing, or one cannot be listed.
        """
        names, label_map, splits = list(names), self.label_map, self.label_map.splits
        present = dict.fromkeys(self.files.sequences())
        there = f"Sequences present: {shortened(list(present)) or 'none'}."
        for name in names:
            if not (name in splits or name in present or name.isdigit() or label_map.split_of(name)):
                raise DataError(
                    f"'{name}' is neither a split ({', '.join(splits)}) nor a sequence that is here. {there}"
                )
        wanted = label_map.sequences(names)
        # A sequence asked for itself stays in: where it is not here, the format says what is missing.
        kept = {*present, *label_map.sequences(name for name in names if name not in splits)}
        found = [sequence for sequence in wanted if sequence in kept]
        absent = [sequence for sequence in wanted if sequence not in kept]
        if not found:
            raise DataError(
                f"{self.root}: no sequence of {', '.join(names)} ({shortened(wanted)}) is here. {there} Choose among "
                "them by number, or complete the download."
            )
        scans, notes = self.files.scans(found), []
        if absent:
            notes.append(f"sequences without scans on this disk, left out: {shortened(absent)}")
        missing = self.files.not_on_disk(found)
        if missing:
            notes.append(
                f"{len(missing):,} of {len(missing) + len(scans):,} scans are not on this disk, left out; the first is "
                f"{missing[0]}. Where that is not meant, complete the download."
            )
        hidden = self.files.left_out(found)
        if hidden:
            more = f" and {len(hidden) - 1:,} more" if len(hidden) > 1 else ""
            why = "names that begin with a dot, or cannot be printed, are no part of a dataset"
            notes.append(f"left out {printable(hidden[0])}{more}: {why}")
        return ScanSelection(scans, notes)

    def has_labels(self, scan: ScanId) -> bool:
        """Whether a scan has labels."""
        return self.files.has_labels(scan)

    def unlabelled(self, scans: Iterable[ScanId]) -> list[ScanId]:
        """Those of some scans that have no labels."""
        return [scan for scan in scans if not self.has_labels(scan)]

    def read(self, scan: ScanId) -> LabelledScan:
        """Points and training labels of a scan.

        Raises:
            DataError: a file is missing, damaged or mislabelled; names the file.
        """
        points = self.files.points(scan)
        if not self.has_labels(scan):
            return LabelledScan(points, None, str(scan))
        raw = self.files.raw_labels(scan, len(points))
        return LabelledScan(points, self.label_map.to_training(raw, self.files.labels_of(scan)), str(scan))


def voxelise_view(scan: LabelledScan, view: View, grid: PolarGrid, label_map: LabelMap) -> VoxelisedScan:
    """The scan as seen in a view, on the grid."""
    voxelised = voxelise(apply_view(scan.points, view), grid, scan.labels, len(label_map.classes))
    return replace(voxelised, name=scan.name)


def open_dataset(root: Path, description: Path) -> Dataset:
    """The dataset below a folder that a YAML file describes.

    Raises:
        SettingsError: the description cannot be used.
    """
    return Dataset.open(root, load_label_map(description))


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Up to so many of some items, such as scans, spread evenly over all."""
    chosen = min(count, len(items))
    return [items[number * len(items) // chosen] for number in range(chosen)]


def epoch_order(scans: Sequence[ScanId], batch_size: int, seed: int, epoch: int) -> list[list[ScanId]]:
    """The scans of an epoch in random order, in batches; the last one may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(len(scans))
    shuffled = [scans[row] for row in order]
    return [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
