"""Scans and labels on disk in the SemanticKITTI layout: `<root>/sequences/00/velodyne/000000.bin` and `labels/`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.base.errors import DataError
from common.scans.point_checks import check_points
from common.scans.scan_files import ScanFiles, is_there, names_in, read_bytes
from common.scans.scan_id import HIDDEN, ScanId

POINT_BYTES = 16
LABEL_BYTES = 4
SCAN_SUFFIX = ".bin"


class SemanticKitti(ScanFiles):
    """The SemanticKITTI layout, see this file's functions."""

    name = "semantic_kitti"

    def sequences(self) -> list[str]:
        return present_sequences(self.root)

    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        return list_scans(self.root, sequences)

    def left_out(self, sequences: Iterable[str]) -> list[str]:
        return hidden_entries(self.root, sequences)

    def points(self, scan: ScanId) -> np.ndarray:
        return read_points(self.root, scan)

    def has_labels(self, scan: ScanId) -> bool:
        return has_labels(self.root, scan)

    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        return read_raw_labels(self.root, scan, points)

    def labels_of(self, scan: ScanId) -> str:
        return str(label_path(self.root, scan))


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
        DataError: the layout is not there, or a sequence is missing, has no scan or cannot be listed.
    """
    present = present_sequences(root)
    scans: list[ScanId] = []
    for sequence in sequences:
        folder = _scan_folder(root, sequence)
        frames = sorted(name.removesuffix(SCAN_SUFFIX) for name in names_in(folder) or () if _is_scan(name))
        if not frames:
            raise DataError(
                f"{folder}: no scans (*{SCAN_SUFFIX}) of sequence {sequence} here. Sequences present: "
                f"{', '.join(present) or 'none'}. Complete the download, or choose sequences that are there."
            )
        scans += [ScanId(sequence, frame) for frame in frames]
    return scans


def present_sequences(root: str | Path) -> list[str]:
    """Names of the sequences under `root` that have scans, sorted; one that cannot be listed counts as present.

    Raises:
        DataError: the layout is not there, or cannot be listed.
    """
    folder = Path(root) / "sequences"
    names = names_in(folder)
    if names is None:
        raise DataError(
            f"no folder '{folder}'. DATA must name the folder that holds sequences/00/velodyne/*{SCAN_SUFFIX} "
            "(for SemanticKITTI the folder called 'dataset')."
        )
    return sorted(name for name in names if not name.startswith(HIDDEN) and _has_scans(root, name))


def hidden_entries(root: str | Path, sequences: Iterable[str]) -> list[str]:
    """What file managers and notebooks left among the scans (`.ipynb_checkpoints`, `._000000.bin`), below `root`."""
    folder = Path(root) / "sequences"
    found = [folder / name for name in names_in(folder) or () if name.startswith(HIDDEN)]
    for sequence in sequences:
        scans = _scan_folder(root, sequence)
        found += [scans / name for name in names_in(scans) or () if name.startswith(HIDDEN)]
    return sorted(str(path.relative_to(root)) for path in found)


def read_points(root: str | Path, scan: ScanId) -> np.ndarray:
    """Points of a scan, float32 [N, 4]: x, y, z in metres, remission.

    Raises:
        DataError: the file is missing, empty, truncated, or holds values that are not finite or that no sensor says.
    """
    path = scan_path(root, scan)
    data = read_bytes(path)
    if not data:
        raise DataError(f"{path}: the scan is empty (0 bytes). Restore the file or exclude the scan.")
    if len(data) % POINT_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes are not a whole number of points of {POINT_BYTES} bytes; the file is "
            "truncated or not a scan. Restore it from the dataset."
        )
    points = np.frombuffer(data, "<f4").reshape(-1, 4)
    check_points(points, path)
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
    data = read_bytes(path)
    if len(data) != points * LABEL_BYTES:
        raise DataError(
            f"{path}: {len(data)} bytes, but the scan {scan_path(root, scan)} has {points} points and needs "
            f"{points * LABEL_BYTES}. Scan and labels do not belong together, or one of them is truncated."
        )
    return np.frombuffer(data, "<u4")


def has_labels(root: str | Path, scan: ScanId) -> bool:
    """Whether the scan has a label file. Something else under its name counts: reading it says what is wrong.

    Raises:
        DataError: there is no telling, the folder cannot be read.
    """
    return is_there(label_path(root, scan))


def _scan_folder(root: str | Path, sequence: str) -> Path:
    return Path(root) / "sequences" / sequence / "velodyne"


def _is_scan(name: str) -> bool:
    return name.endswith(SCAN_SUFFIX) and not name.startswith(HIDDEN)


def _has_scans(root: str | Path, sequence: str) -> bool:
    try:
        return any(map(_is_scan, names_in(_scan_folder(root, sequence)) or ()))
    except DataError:
        # Whoever asks for this very sequence is told; the others need not care.
        return True
