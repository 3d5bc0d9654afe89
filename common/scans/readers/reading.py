"""One cloud, or the labels of one, from one file, by its suffix; many clouds from a bag."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.base.errors import DataError
from common.scans.readers.bags import BAG_SUFFIXES, Bag, is_bag
from common.scans.readers.cloud import Cloud
from common.scans.readers.extras import unreadable

POINT_COLUMNS = ("x", "y", "z", "intensity")
"""Of files that do not name their columns, unless one says otherwise."""

MOST = 0xFFFF
"""Largest raw id; the high 16 bits of uint32 are an instance, as in SemanticKITTI."""

SAY_COLUMNS = "options.columns of the dataset's YAML file, or --file-option columns=[x,y,z,intensity]"


def read_cloud(path: Path, columns: Sequence[str] = POINT_COLUMNS, topic: str | None = None) -> Iterator[Cloud]:
    """The clouds of a file: one, or of a bag one for each message in the order of time.

    Args:
        path: `.bin`, `.npy`, `.pcd`, `.ply`, `.bag`, `.db3`, `.mcap`, or the folder of a ROS 2 bag.
        columns: of `.bin` (float32), and of `.npy` without names of its own.
        topic: of a bag, None for its only PointCloud2 topic.

    Raises:
        DataError: the file is missing, damaged or of another kind, or a library is missing; names the file and a next
            step.
    """
    if is_bag(path):
        with Bag(path, topic) as bag:
            yield from (bag.read(index) for index in range(len(bag)))
    else:
        yield read_file(path, columns)


def read_file(path: Path, columns: Sequence[str] = POINT_COLUMNS) -> Cloud:
    """The one cloud of a file that is no bag, see `read_cloud`.

    Raises:
        DataError: it cannot be read.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: files of this kind are not read; {', '.join([*SUFFIXES, *BAG_SUFFIXES])} are.")
    with unreadable(path):
        return Cloud(str(path), read(path, columns))


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


def read_bin(path: Path, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Columns of a file of little-endian float32, a point after the other."""
    data = path.read_bytes()
    point = 4 * len(columns)
    if len(data) % point:
        raise DataError(
            f"{path}: {len(data)} bytes are not a whole number of points of {point} bytes (columns "
            f"{', '.join(columns)}, float32). The file is truncated, or has other columns: see {SAY_COLUMNS}."
        )
    return dict(zip(columns, np.frombuffer(data, "<f4").reshape(-1, len(columns)).T, strict=True))


def read_npy(path: Path, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Columns of an array [N, C], or of one whose elements have named fields, [N]."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.names and array.ndim == 1:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or array.shape[1] != len(columns):
        raise DataError(
            f"{path}: an array of shape {list(array.shape)}; one row a point and {len(columns)} columns "
            f"({', '.join(columns)}) are needed. See {SAY_COLUMNS}."
        )
    return dict(zip(columns, array.T, strict=True))


def read_pcd(path: Path, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Fields of a PCD file, text or binary, compressed or not; padding left out."""
    from pypcd4.pypcd4 import PointCloud

    cloud = PointCloud.from_path(path)
    data = np.atleast_1d(cloud.pc_data)
    if len(data) != cloud.metadata.points:
        raise DataError(
            f"{path}: holds {len(data)} points where its header says {cloud.metadata.points}; it is truncated."
        )
    # pypcd4 gives unnamed fields ("_" in the file) names that begin so.
    return {name: data[name] for name in data.dtype.names or () if not name.startswith("#$%&~~")}


def read_ply(path: Path, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Properties of the vertices of a PLY file, text or binary; lists left out."""
    from plyfile import PlyData

    vertices = PlyData.read(str(path))["vertex"].data
    return {name: vertices[name] for name in vertices.dtype.names if vertices.dtype[name].kind != "O"}


_READERS: dict[str, Callable[[Path, Sequence[str]], Mapping[str, np.ndarray]]] = {
    ".bin": read_bin,
    ".npy": read_npy,
    ".pcd": read_pcd,
    ".ply": read_ply,
}
SUFFIXES = tuple(_READERS)
"""Of files with one cloud each."""
