"""A teacher that ran somewhere else: what it said of the points of each scan, read from files."""

import hashlib
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from common.base.config import Settings, load_settings
from common.base.errors import DataError, SettingsError
from common.scans.label_map import LabelMap
from common.scans.scan_batch import ScanBatch
from common.scans.scan_id import ScanId
from common.targets.store.archive import UNREADABLE_ZIP
from common.targets.teacher import Precision, Teacher
from common.targets.teacher_targets import TeacherTargets
from common.targets.transport import mean_over_points
from stage1_dump_teacher.teachers.averaged import log_probabilities

DESCRIPTION = "classes.yaml"
SUFFIXES = (".npy", ".npz")
PAGE = "docs/recorded-targets.md"
UNREADABLE = (*UNREADABLE_ZIP, EOFError, MemoryError, zlib.error, lzma.LZMAError)

SUM_TOLERANCE = 0.01
"""How far the probabilities of a point may be from 1 together: half precision rounds each."""

LOG_OF_ZERO = -18.0
"""Logit of a probability that was recorded as 0, and of "unlabelled" where the model has no such class: 1.5e-8."""


class Recording(Settings):
    """What the files of a folder hold; its `classes.yaml`.

    Attributes:
        model: name of what made them, its version with it: it tells one teacher from another.
        kind: of the numbers.
        classes: name of the dataset's class that each column stands for, in the order of the columns; probabilities of
            columns that stand for the same class are added. Left out, they are the dataset's classes in its order.
    """

    model: str = Field(min_length=1, max_length=100)
    kind: Literal["logits", "probabilities"]
    classes: list[str] | None = Field(None, min_length=1)


@dataclass(frozen=True)
class RecordedTeacher(Teacher):
    """Logits or probabilities of each point of each scan: `<folder>/<sequence>/<frame>.npy` or `.npz`.

    They are the same in every view. A voxel gets the mean of its points, of logits or of probabilities. There are no
    layers.

    Attributes:
        columns: columns that stand for each class of the dataset, set by `for_dataset`.
    """

    name = "recorded"

    folder: Path
    recording: Recording
    hash: str
    columns: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "RecordedTeacher":
        """Read what a folder says about its files; SettingsError where its `classes.yaml` cannot be used."""
        description = checkpoint.absolute() / DESCRIPTION
        if not description.is_file():
            raise SettingsError(f"{description} is missing: it says what a folder of predictions holds. See {PAGE}.")
        recording = load_settings(Recording, description)
        digest = hashlib.sha256(recording.model_dump_json().encode()).hexdigest()
        return cls(checkpoint, recording, f"recorded {recording.model} {digest[:16]}")

    def in_precision(self, precision: Precision) -> "RecordedTeacher":
        """The same: nothing is computed here."""
        return self

    def for_dataset(self, label_map: LabelMap) -> "RecordedTeacher":
        """As `Teacher`; SettingsError where a column stands for no class, or a class other than 0 has no column."""
        known = label_map.names
        names = self.recording.classes or known
        columns = tuple(tuple(place for place, own in enumerate(names) if own == name) for name in known)
        strange = sorted(set(names) - set(known))
        absent = [name for name, own in zip(known[1:], columns[1:], strict=True) if not own]
        if strange or absent:
            raise SettingsError(
                f"{self.folder / DESCRIPTION}: classes: "
                + (f"dataset '{label_map.name}' has no {', '.join(strange)}. " if strange else "")
                + (f"No column stands for {', '.join(absent)}. " if absent else "")
                + f"Name a class of the dataset for each column: {', '.join(known)}."
            )
        return replace(self, columns=columns)

    def __str__(self) -> str:
        return self.hash

    @property
    def classes(self) -> int:
        """Classes of the dataset, "unlabelled" included."""
        return len(self.columns)

    @property
    def channels(self) -> dict[str, int]:
        """There are no layers."""
        return {}

    def check_scan(self, scan: ScanId, points: int) -> None:
        self.rows(scan, points)

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        """Targets of a batch, without layers.

        Raises:
            DataError: what is recorded of a scan cannot be used; names the scan and the file.
        """
        rows = [self.rows(scan, len(points)) for scan, points in zip(batch.scan_ids, batch.clouds(), strict=True)]
        logits = in_classes(torch.from_numpy(np.concatenate(rows)), self.columns).to(batch.voxels.device).double()
        if self.recording.kind == "logits":
            mean = mean_over_points(logits, batch).float()
        else:
            mean = log_probabilities(mean_over_points(logits.softmax(dim=1), batch))
        return TeacherTargets(batch.voxels, mean, {})

    def rows(self, scan: ScanId, points: int) -> np.ndarray:
        """Logits, or logarithms of probabilities, of each point of a scan: float32 [points, columns].

        Raises:
            DataError: they cannot be read, or are not what `classes.yaml` says; names the scan and the file.
        """
        paths = [self.folder / scan.sequence / f"{scan.frame}{suffix}" for suffix in SUFFIXES]
        path = next((path for path in paths if path.exists()), paths[0])
        columns = 1 + max(place for own in self.columns for place in own)
        try:
            rows = checked_rows(read_array(path), points, columns)
            problem = no_distribution(rows)
            if self.recording.kind == "probabilities":
                if problem is not None:
                    raise ValueError(problem)
                with np.errstate(divide="ignore"):
                    return np.maximum(np.log(rows), np.float32(LOG_OF_ZERO))
            if problem is None:
                raise ValueError(f"every row is a distribution; set kind: probabilities in {DESCRIPTION}")
        except FileNotFoundError as error:
            raise DataError(f"scan {scan}: {path} is missing (or the same with .npz). See {PAGE}.") from error
        except UNREADABLE as error:
            raise DataError(f"scan {scan}: {path}: {error}. See {PAGE}.") from error
        return rows


def read_array(path: Path) -> np.ndarray:
    """The array of an `.npy` file, or the only one of an `.npz` file; nothing is unpickled. Raises `UNREADABLE`."""
    loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        if len(loaded.files) != 1:
            raise ValueError(f"holds {len(loaded.files)} arrays, one is expected")
        return np.asarray(loaded[loaded.files[0]])


def checked_rows(rows: np.ndarray, points: int, columns: int) -> np.ndarray:
    """A finite number for each point and column, float32 [points, columns]; ValueError says what else it is."""
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"holds {rows.dtype} of shape {rows.shape}, not floats of [points, classes]")
    if len(rows) != points:
        raise ValueError(f"has {len(rows)} rows, the scan has {points} points")
    if rows.shape[1] != columns:
        raise ValueError(f"has {rows.shape[1]} columns, {DESCRIPTION} and the dataset make it {columns}")
    with np.errstate(over="ignore"):
        rows = np.asarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(rows).all(axis=1)))} holds NaN or infinity")
    return rows


def no_distribution(rows: np.ndarray) -> str | None:
    """What is wrong with the first row that is no distribution; None where all look like one, as logits never do."""
    wrong = (rows < 0).any(axis=1) | (np.abs(rows.sum(axis=1) - 1) > SUM_TOLERANCE)
    if not wrong.any():
        return None
    row = int(np.argmax(wrong))
    return f"row {row} is no distribution: its smallest number is {rows[row].min():.3g}, its sum {rows[row].sum():.3g}"


def in_classes(rows: torch.Tensor, columns: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Logits of a model's columns as those of the dataset's classes, float [N, columns] to float [N, classes]."""
    none = rows.logsumexp(dim=1) + LOG_OF_ZERO
    # One column alone stays as it is, to the bit.
    found = (rows[:, own].logsumexp(dim=1) if len(own) > 1 else rows[:, own[0]] if own else none for own in columns)
    return torch.stack(list(found), dim=1)
