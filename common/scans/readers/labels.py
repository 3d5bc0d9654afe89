"""Raw labels in files and columns."""

from pathlib import Path

import numpy as np

from common.base.errors import DataError
from common.scans.readers.extras import unreadable

MOST = 0xFFFF
"""Largest raw id; the high 16 bits of uint32 are an instance, as in SemanticKITTI."""


def read_label_file(path: Path, points: int) -> np.ndarray:
    """Raw labels of so many points, uint32 [N], from a `.label`, `.bin` or `.npy` file.

    `.label` is uint32, and so is `.bin` of 4 bytes a point: id in the low 16 bits, instance in the high 16. `.bin` of 1
    or 2 bytes a point is uint8 or uint16. `.npy` holds any numbers, see `raw_ids`.

    Raises:
        DataError: the file is missing, of another kind or another length; names it.
    """
    suffix = path.suffix.lower()
    with unreadable(path):
        if suffix == ".npy":
            labels = raw_ids(np.load(path, allow_pickle=False).squeeze(), str(path))
            size = labels.size
        elif suffix in (".label", ".bin"):
            data = path.read_bytes()
            widths = (4,) if suffix == ".label" else (1, 2, 4)
            width = next((width for width in widths if width * points == len(data)), 0)
            size = len(data) // (width or widths[0])
            labels = np.frombuffer(data, f"<u{width}").astype(np.uint32) if width else np.empty(0, np.uint32)
        else:
            raise DataError(f"{path}: label files of this kind are not read; .label, .bin and .npy are.")
    if labels.shape != (points,):
        raise DataError(
            f"{path}: {size} labels for a scan of {points} points. Scan and labels do not belong together, or one of "
            "them is truncated."
        )
    return labels


def raw_ids(values: np.ndarray, source: str) -> np.ndarray:
    """Numbers as raw labels, uint32 of the same shape. Those of type uint32 may carry an instance in the high 16 bits.

    Raises:
        DataError: some are no whole numbers in 0..65535.
    """
    if values.dtype == np.uint32:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"{source}: labels are numbers, not {values.dtype}.")
    good = (values >= 0) & (values <= MOST) & (values == np.floor(values))
    if not good.all():
        raise DataError(
            f"{source}: {values[~good].flat[0]} is no label id; whole numbers in 0..{MOST} are. Convert larger ids "
            "to small ones."
        )
    return values.astype(np.uint32)
