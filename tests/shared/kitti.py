"""What is in a folder of the SemanticKITTI layout, without a dataset around it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.scans.formats.semantic_kitti import SemanticKitti
from common.scans.scan_id import ScanId


def present_sequences(root: str | Path) -> list[str]:
    return SemanticKitti(Path(root), {}).sequences()


def list_scans(root: str | Path, sequences: Iterable[str]) -> list[ScanId]:
    return SemanticKitti(Path(root), {}).scans(sequences)


def hidden_entries(root: str | Path, sequences: Iterable[str]) -> list[str]:
    return SemanticKitti(Path(root), {}).left_out(sequences)


def read_points(root: str | Path, scan: ScanId) -> np.ndarray:
    return SemanticKitti(Path(root), {}).points(scan)


def has_labels(root: str | Path, scan: ScanId) -> bool:
    return SemanticKitti(Path(root), {}).has_labels(scan)


def read_raw_labels(root: str | Path, scan: ScanId, points: int) -> np.ndarray:
    return SemanticKitti(Path(root), {}).raw_labels(scan, points)
