"""Scans and labels on disk in the SemanticKITTI layout: `<root>/sequences/00/velodyne/000000.bin` and `labels/`."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import DataError

POINT_BYTES = 16
LABEL_BYTES = 4


class ScanId(NamedTuple):
    """Names one scan of a dataset; prints as `00/000000`."""

    sequence: str
    frame: str

    def __str__(self) -> str:
        return f"{self.sequence}/{self.frame}"

    @classmethod
    def parse(cls, text: str) -> "ScanId":
        """The inverse of `str`.

        Raises:
            DataError: the text is not of the form `sequence/frame`.
        """
        sequence, slash, frame = text.partition("/")
        if not (sequence and slash and frame) or "/" in frame:
            raise DataError(f"'{text}' does not name a scan; write sequence/frame, for example 00/000000")
        return cls(sequence, frame)


def scan_path(root: str | Path, scan: ScanId) -> Path:
    """Where the points of a scan are."""
    return Path(root) / "sequences" / scan.sequence / "velodyne" / f"{scan.frame}.bin"


def label_path(root: str | Path, scan: ScanId) -> Path:
    """Where the labels of a scan are, if it has any."""
    return Path(root) / "sequences" / scan.sequence / "labels" / f"{scan.frame}.label"


def list_scans(root: str | Path, sequences: Iterable[str]) -> list[ScanId]:
    """All scans of some sequences, in order.

    Args:
        root: the folder that holds `sequences/`.
        sequences: folder names, such as `00`.

    Raises:
        DataError: the layout is not there, or a sequence is missing or has no scan.
    """
    present = present_sequences(root)
    scans: list[ScanId] = []
    for sequence in sequences:
        folder = Path(root) / "sequences" / sequence / "velodyne"
        frames = sorted(path.stem for path in folder.glob("*.bin"))
        if not frames:
            raise DataError(
                f"{folder}: no scans (*.bin) of sequence {sequence} here. Sequences present: "
                f"{', '.join(present) or 'none'}. Complete the download, or choose sequences that are there."
            )
        scans += [ScanId(sequence, frame) for frame in frames]
    return scans


def present_sequences(root: str | Path) -> list[str]:
    """Names of the sequence folders under `root`, sorted.

    Raises:
        DataError: the layout is not there.
    """
    folder = Path(root) / "sequences"
    if not folder.is_dir():
        raise DataError(
            f"no folder '{folder}'. DATA must name the folder that holds sequences/00/velodyne/*.bin "
            "(for SemanticKITTI the folder called 'dataset')."
        )
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def read_points(root: str | Path, scan: ScanId) -> np.ndarray:
    """Points of a scan, float32 [N, 4]: x, y, z in metres, remission.

    Raises:
        DataError: the file is missing, empty, truncated, or holds values that are not finite.
    """
    path = scan_path(root, scan)
    data = _read(path)
    if not data:
        raise DataError(f"{path}: the scan is empty (0 bytes). Restore the file or exclude the scan.")
    if len(data) % POINT_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes are not a whole number of points of {POINT_BYTES} bytes; the file is "
            "truncated or not a scan. Restore it from the dataset."
        )
    points = np.frombuffer(data, "<f4").reshape(-1, 4)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise DataError(
            f"{path}: {int(bad.sum())} of {len(points)} points hold NaN or infinity, the first at row "
            f"{int(bad.argmax())}. Restore the file, or remove those points and their labels."
        )
    return points


def read_raw_labels(root: str | Path, scan: ScanId, points: int) -> np.ndarray:
    """Raw labels of a scan, uint32 [N]: semantic id in the low 16 bits, instance in the high 16.

    Args:
        root: the folder that holds `sequences/`.
        scan: which scan.
        points: number of points N of the scan.

    Raises:
        DataError: the file is missing, or its length does not match the scan.
    """
    path = label_path(root, scan)
    data = _read(path)
    if len(data) != points * LABEL_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes, but the scan {scan_path(root, scan)} has {points} points and needs "
            f"{points * LABEL_BYTES}. Scan and labels do not belong together, or one of them is truncated."
        )
    return np.frombuffer(data, "<u4")


def has_labels(root: str | Path, scan: ScanId) -> bool:
    """Whether the scan has a label file."""
    return label_path(root, scan).is_file()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check DATA and the download.") from error
