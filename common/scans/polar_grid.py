"""From points to polar voxels, pillars and the nine point features of PolarNet and Cylinder3D.

Pure functions on arrays. The convention is the published one (PolarNet, CVPR 2020; Cylinder3D, CVPR 2021): bins are
`(max - min) / (bins - 1)` wide, so the last bin of an axis is reached only by values clipped to its maximum.
"""

import math
from dataclasses import dataclass

import numpy as np

from common.base.errors import SettingsError
from common.scans.scatter import majority_label

POINT_FEATURES = 9
"""Offset to the voxel centre (rho, phi, z), then rho, phi, z, x, y, remission."""

POINT_COLUMNS = [6, 7, 5, 8]
"""Features that are the point itself: x, y, z, remission."""

VOLUMES = {
    "polarnet": ((3.0, -np.pi, -3.0), (50.0, np.pi, 1.5)),
    "cylinder3d": ((0.0, -np.pi, -4.0), (50.0, np.pi, 2.0)),
    "nuscenes": ((0.0, -np.pi, -5.0), (50.0, np.pi, 3.0)),
}
"""Named volumes as (minimum, maximum) of (rho in metres, phi in radians, z in metres). A checkpoint fits one only."""

COARSEST_STRIDE = 8
"""Stride of the coarsest teacher layer that is distilled."""

MOST_CELLS = 2**31 - 1
"""Linear indices of voxels are 32-bit numbers with a sign while they are read."""

ALIGNED_BINS = 16
"""Azimuth bins in a cell of the teacher's coarsest layer: a rotation by multiples of them keeps all its cells whole."""


@dataclass(frozen=True)
class PolarGrid:
    """A polar voxel grid: bins along (rho, phi, z) over a fixed volume.

    Attributes:
        shape: number of bins along rho, phi and z.
        minimum: lower corner (rho in metres, phi in radians, z in metres).
        maximum: upper corner.

    Raises:
        SettingsError: no scan could be put on a grid of this shape.
    """

    shape: tuple[int, int, int]
    minimum: tuple[float, float, float]
    maximum: tuple[float, float, float]

    def __post_init__(self) -> None:
        problem = shape_problem(self.shape)
        if problem:
            raise SettingsError(f"grid shape {self.shape}: {problem}")

    @classmethod
    def named(cls, volume: str, shape: tuple[int, int, int] = (480, 360, 32)) -> "PolarGrid":
        """A grid over one of the published volumes, see `VOLUMES`."""
        if volume not in VOLUMES:
            raise SettingsError(f"unknown volume '{volume}'; choose one of {', '.join(VOLUMES)}")
        minimum, maximum = VOLUMES[volume]
        return cls(shape, minimum, maximum)

    @property
    def interval(self) -> np.ndarray:
        """Bin widths, float64 [3] (metres, radians, metres)."""
        return (np.array(self.maximum) - np.array(self.minimum)) / (np.array(self.shape) - 1)


@dataclass(frozen=True)
class VoxelisedScan:
    """One scan on a polar grid. Voxels are sorted by (rho, phi, z); a pillar is a run of voxels of equal (rho, phi).

    Attributes:
        point_features: float32 [N, 9].
        point_voxel: int64 [N], row in `voxels` of each point.
        voxels: int32 [V, 3], (rho, phi, z) bin of each occupied voxel.
        voxel_labels: uint8 [V], majority label of the voxel's points; zeros for a scan without labels.
        name: of the scan, such as `00/000000`; empty where it is not known.
    """

    point_features: np.ndarray
    point_voxel: np.ndarray
    voxels: np.ndarray
    voxel_labels: np.ndarray
    name: str = ""


def shape_problem(shape: tuple[int, int, int]) -> str | None:
    """Why no scan can be put on a grid of this shape; None where it can."""
    if min(shape) < 2:
        return "each axis needs at least 2 bins, since they are (max - min) / (bins - 1) wide"
    cells = math.prod(shape)
    if cells > MOST_CELLS:
        return f"{cells:,} cells are more than the {MOST_CELLS:,} that a grid can have; choose fewer bins"
    return None


def check_distillable(shape: tuple[int, int, int]) -> None:
    """Refuse a grid on which teacher and student layers do not match in size.

    Strided sparse convolutions round sizes up and max pooling rounds down, so the layers at an eighth of the resolution
    agree only where the radial and azimuth sizes are multiples of 8.

    Raises:
        SettingsError: names the nearest sizes that can be distilled.
    """
    for axis, bins in zip(("radial", "azimuth"), shape, strict=False):
        if bins % COARSEST_STRIDE:
            below = bins // COARSEST_STRIDE * COARSEST_STRIDE
            choices = " or ".join(str(size) for size in (below, below + COARSEST_STRIDE) if size)
            raise SettingsError(
                f"grid shape {shape}: {bins} {axis} bins are not a multiple of {COARSEST_STRIDE}, so teacher and "
                f"student layers do not match in size there; choose {choices}"
            )


def to_polar(xyz: np.ndarray) -> np.ndarray:
    """Cartesian float32 [N, 3] (metres) to (rho in metres, phi in radians in -pi..pi, z in metres), float32 [N, 3]."""
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    return np.stack((np.sqrt(x * x + y * y), np.arctan2(y, x), z)).T


def bin_indices(polar: np.ndarray, grid: PolarGrid) -> np.ndarray:
    """Bin of each polar point, int64 [N, 3]; points outside the volume are clipped onto its border first."""
    # Axis by axis, in place: several times faster than on rows of three.
    bins, interval = np.empty(polar.shape[::-1], np.int64), grid.interval
    for axis, (minimum, maximum) in enumerate(zip(grid.minimum, grid.maximum, strict=True)):
        column = np.clip(polar[:, axis], minimum, maximum, dtype=np.float64)
        column -= minimum
        column /= interval[axis]
        bins[axis] = np.floor(column, out=column)
    return bins.T


def point_features(points: np.ndarray, polar: np.ndarray, bins: np.ndarray, grid: PolarGrid) -> np.ndarray:
    """The nine input features of each point, float32 [N, 9], see `POINT_FEATURES`.

    Args:
        points: float32 [N, 4], x, y, z in metres and remission.
        polar: float32 [N, 3] from `to_polar`.
        bins: int64 [N, 3] from `bin_indices`.
    """
    columns, interval = np.empty((POINT_FEATURES, len(points)), np.float32), grid.interval
    for axis, minimum in enumerate(grid.minimum):
        centre = bins[:, axis] + 0.5
        centre *= interval[axis]
        centre += minimum
        np.subtract(polar[:, axis], centre, out=columns[axis], casting="same_kind")
    columns[3:6] = polar.T
    columns[6:] = points[:, [0, 1, 3]].T
    return np.ascontiguousarray(columns.T)


def unique_with_inverse(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values of int64 [N], cells of a grid, and the row of each value among them: int64 [V], int64 [N].

    The same as `np.unique(linear, return_inverse=True)`, in a quarter of the time.
    """
    # Value and row in one number: sorting numbers is much faster than sorting rows by them.
    row_bits = max(len(linear) - 1, 1).bit_length()
    packed = linear << row_bits
    packed |= np.arange(len(linear))
    packed.sort()
    order = packed & ((1 << row_bits) - 1)
    ordered = np.right_shift(packed, row_bits, out=packed)
    starts = np.empty(len(linear), bool)
    starts[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=starts[1:])
    inverse = np.empty(len(linear), np.int64)
    inverse[order] = np.cumsum(starts) - 1
    return ordered[starts], inverse


def voxelise(points: np.ndarray, grid: PolarGrid, labels: np.ndarray | None = None, classes: int = 20) -> VoxelisedScan:
    """Put a scan on a polar grid.

    Args:
        points: float32 [N, 4], x, y, z in metres and remission, N > 0.
        grid: the grid.
        labels: uint8 [N] training labels in 0..classes-1 with 0 = unlabelled, or None.
        classes: number of classes, the unlabelled one included.
    """
    polar = to_polar(points[:, :3])
    bins = bin_indices(polar, grid)
    _, azimuth_bins, height_bins = grid.shape
    linear = (bins[:, 0] * azimuth_bins + bins[:, 1]) * height_bins + bins[:, 2]
    occupied, point_voxel = unique_with_inverse(linear)
    voxels = np.stack(np.unravel_index(occupied, grid.shape), axis=1).astype(np.int32)
    if labels is None:
        voxel_labels = np.zeros(len(voxels), np.uint8)
    else:
        voxel_labels = majority_label(labels, point_voxel, len(voxels), classes)
    return VoxelisedScan(point_features(points, polar, bins, grid), point_voxel, voxels, voxel_labels)
