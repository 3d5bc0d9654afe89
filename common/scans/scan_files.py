"""Scans on disk: what a format must be able to do. One class in one file of `common/scans/formats` each."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from common.base.errors import DataError, SettingsError
from common.base.text import shortened
from common.scans.label_map import LabelMap
from common.scans.readers.extras import unreadable
from common.scans.scan_id import ScanId


class ScanFiles(ABC):
    """The scans below a folder. A format of your own subclasses it; the dataset's YAML file names it (`format`).

    Attributes:
        name: of the format, and of its file in `common/scans/formats`.
        root: the folder.
    """

    name: ClassVar[str]

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        """A format that takes options, as the dataset's YAML file has them, overrides this.

        Raises:
            SettingsError: there are options, and the format has none.
        """
        if options:
            raise SettingsError(f"options: the format '{self.name}' has none; {', '.join(options)} must go")
        self.root = root

    @abstractmethod
    def sequences(self) -> list[str]:
        """Sequences that have scans, sorted.

        Raises:
            DataError: the folder does not hold this format, or cannot be listed.
        """

    @abstractmethod
    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        """All scans of some sequences, in order.

        Raises:
            DataError: a sequence is missing, has no scan or cannot be listed.
        """

    @abstractmethod
    def points(self, scan: ScanId) -> np.ndarray:
        """Points of a scan, float32 [N, 4]: x, y, z in metres around the sensor, remission.

        Raises:
            DataError: they cannot be read, or hold what no sensor measures; names the file.
        """

    @abstractmethod
    def has_labels(self, scan: ScanId) -> bool:
        """Whether the scan has labels.

        Raises:
            DataError: there is no telling.
        """

    @abstractmethod
    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        """Raw labels of a scan of so many points, uint32 [N]: class in the low 16 bits, instance in the high 16.

        Raises:
            DataError: they cannot be read, or do not belong to the scan; names the file.
        """

    def prediction(self, scan: ScanId, labels: np.ndarray, label_map: LabelMap, split: str | None) -> tuple[str, bytes]:
        """A file of the benchmark's submission, by its path below the submission's folder, and its content.

        It is SemanticKITTI's, unless a format has its own. `labels` are predicted training labels, uint8 [N]; `split`
        is the one that the scan belongs to, None for none.
        """
        name = f"sequences/{scan.sequence}/predictions/{scan.frame}.label"
        return name, label_map.to_raw(labels).astype("<u4").tobytes()

    def submission_notes(self, splits: Iterable[str | None]) -> dict[str, bytes]:
        """What a submission holds beside the predictions of scans of some splits: content by path below its folder."""
        return {}

    def not_on_disk(self, sequences: Iterable[str]) -> list[str]:
        """Scans that the dataset's own tables list and that are not on this disk, as paths below the root."""
        return []

    def missing(self, what: str) -> DataError:
        """The error for a sequence that is not here; `what` says which one, and where it was looked for."""
        there = shortened(self.sequences()) or "none"
        return DataError(f"{what}. Sequences present: {there}. Complete the download, or choose among them.")

    def labels_of(self, scan: ScanId) -> str:
        """Where the labels of a scan are, for messages."""
        return f"scan {scan}"

    def left_out(self, sequences: Iterable[str]) -> list[str]:
        """What lies among the scans of some sequences without being one, as paths below the root."""
        return []

    def restored(self, scan: ScanId, labels: np.ndarray) -> np.ndarray:
        """Training labels of `points`, integers [N], as one for each point on disk, in the order of the file, [M].

        They are 0 where `points` leaves a point out.
        """
        return labels


def read_bytes(path: Path) -> bytes:
    """A whole file of a dataset.

    Raises:
        DataError: it cannot be read.
    """
    with unreadable(path):
        return path.read_bytes()


def is_there(path: Path) -> bool:
    """Whether something has this name. What is no file counts: reading it says what is wrong.

    Raises:
        DataError: there is no telling, the folder cannot be read.
    """
    with unreadable(path), suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
        return True
    return False


def names_in(folder: Path) -> list[str] | None:
    """Names in a folder, None where there is no such folder.

    Raises:
        DataError: it cannot be read.
    """
    with unreadable(folder), suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(folder)
    return None
