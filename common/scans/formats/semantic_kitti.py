"""Scans and labels on disk in the SemanticKITTI layout: `<root>/sequences/00/velodyne/000000.bin` and `labels/`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.base.errors import DataError
from common.base.files import write_atomically
from common.scans.point_checks import check_points
from common.scans.scan_files import ScanFiles, is_there, names_in, read_bytes
from common.scans.scan_id import HIDDEN, ScanId

POINT_BYTES = 16
LABEL_BYTES = 4
SCAN_SUFFIX = ".bin"


class SemanticKitti(ScanFiles):
    """The SemanticKITTI layout. Labels may be missing, those of a scan or all of them."""

    name = "semantic_kitti"

    def sequences(self) -> list[str]:
        """See `ScanFiles`. One that cannot be listed counts as present."""
        folder = self.root / "sequences"
        names = names_in(folder)
        if names is None:
            raise DataError(
                f"no folder '{folder}'. --data must name the folder that holds sequences/00/velodyne/*{SCAN_SUFFIX} "
                "(for SemanticKITTI the folder called 'dataset')."
            )
        return sorted(name for name in names if not name.startswith(HIDDEN) and self._has_scans(name))

    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        scans: list[ScanId] = []
        for sequence in sequences:
            folder = self._folder(sequence)
            frames = sorted(name.removesuffix(SCAN_SUFFIX) for name in names_in(folder) or () if _is_scan(name))
            if not frames:
                raise self.missing(f"{folder}: no scans (*{SCAN_SUFFIX}) of sequence {sequence} here")
            scans += [ScanId(sequence, frame) for frame in frames]
        return scans

    def left_out(self, sequences: Iterable[str]) -> list[str]:
        """See `ScanFiles`: what file managers and notebooks leave (`.ipynb_checkpoints`, `._000000.bin`)."""
        folders = [self.root / "sequences", *map(self._folder, sequences)]
        found = [folder / name for folder in folders for name in names_in(folder) or () if name.startswith(HIDDEN)]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def points(self, scan: ScanId) -> np.ndarray:
        path = scan_path(self.root, scan)
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

    def has_labels(self, scan: ScanId) -> bool:
        """See `ScanFiles`. Something else than a file under its name counts: reading it says what is wrong."""
        return is_there(label_path(self.root, scan))

    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        path = label_path(self.root, scan)
        data = read_bytes(path)
        if len(data) != points * LABEL_BYTES:
            raise DataError(
                f"{path}: {len(data)} bytes, but the scan {scan_path(self.root, scan)} has {points} points and needs "
                f"{points * LABEL_BYTES}. Scan and labels do not belong together, or one of them is truncated."
            )
        return np.frombuffer(data, "<u4")

    def labels_of(self, scan: ScanId) -> str:
        return str(label_path(self.root, scan))

    def _folder(self, sequence: str) -> Path:
        return self.root / "sequences" / sequence / "velodyne"

    def _has_scans(self, sequence: str) -> bool:
        try:
            return any(map(_is_scan, names_in(self._folder(sequence)) or ()))
        except DataError:
            # Whoever asks for this very sequence is told; the others need not care.
            return True


def scan_path(root: str | Path, scan: ScanId) -> Path:
    """Where the points of a scan are."""
    return Path(root) / "sequences" / scan.sequence / "velodyne" / f"{scan.frame}{SCAN_SUFFIX}"


def label_path(root: str | Path, scan: ScanId) -> Path:
    """Where the labels of a scan are, if it has any."""
    return Path(root) / "sequences" / scan.sequence / "labels" / f"{scan.frame}.label"


def write_scan(root: Path, scan: ScanId, points: np.ndarray, raw_labels: np.ndarray | None) -> None:
    """Write points [N, 4] and, where there are any, raw labels [N] of a scan, each file whole or not at all."""
    if raw_labels is not None:
        write_atomically(label_path(root, scan), raw_labels.astype("<u4").tobytes())
    # Points come last: a scan that is there has its labels.
    write_atomically(scan_path(root, scan), points.astype("<f4").tobytes())


def _is_scan(name: str) -> bool:
    return name.endswith(SCAN_SUFFIX) and not name.startswith(HIDDEN)
