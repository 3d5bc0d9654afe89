"""A format of one's own: a scan is one `.npy` file, its labels another beside it."""

from collections.abc import Iterable

import numpy as np

from common.base.errors import DataError
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId


class NumpyFiles(ScanFiles):
    """`<root>/<sequence>-<frame>.npy`, float32 [N, 4], and `<sequence>-<frame>.labels.npy`, uint32 [N]."""

    name = "numpy"

    def sequences(self) -> list[str]:
        return sorted({scan.sequence for scan in self._all()})

    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        wanted = list(sequences)
        found = [scan for sequence in wanted for scan in self._all() if scan.sequence == sequence]
        if not found:
            raise DataError(f"{self.root}: no scan of {', '.join(wanted)}")
        return found

    def points(self, scan: ScanId) -> np.ndarray:
        return np.load(self.root / f"{scan.sequence}-{scan.frame}.npy")

    def has_labels(self, scan: ScanId) -> bool:
        return self._labels(scan).is_file()

    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        return np.load(self._labels(scan))

    def _labels(self, scan: ScanId):
        return self.root / f"{scan.sequence}-{scan.frame}.labels.npy"

    def _all(self) -> list[ScanId]:
        names = sorted(path.stem for path in self.root.glob("*.npy") if not path.stem.endswith(".labels"))
        return [ScanId(*name.split("-")) for name in names]
