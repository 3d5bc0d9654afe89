"""Bird's-eye-view images as arrays: seen from above, x (forward) up, y (left) to the left, the sensor in the middle.

Pure functions on arrays. An image covers the square of 2 * radius metres around the sensor.
"""

import numpy as np

from common.scans.polar_grid import PolarGrid, bin_indices, to_polar


def points_image(
    points: np.ndarray, colours: np.ndarray, background: np.ndarray, radius: float, size: int, dot: int = 1
) -> np.ndarray:
    """Draw points as dots of `dot` pixels a side; of points at one place the highest is seen.

    Args:
        points: float32 [N, 4], x, y, z in metres and remission.
        colours: uint8 [N, 3].
        background: uint8 [3].
        radius: half the side of the square, metres.
        size: pixels of a side.

    Returns:
        uint8 [size, size, 3].
    """
    row, column = (np.floor((radius - points[:, axis]) / (2 * radius) * size).astype(np.int64) for axis in (0, 1))
    highest_last = np.argsort(points[:, 2], kind="stable")
    row, column, colours = row[highest_last], column[highest_last], colours[highest_last]
    image = np.empty((size, size, 3), np.uint8)
    image[:] = background
    # The dots stay in the points' order, so that no dot covers one of a higher point.
    first = -(dot // 2)
    offsets = np.stack(np.meshgrid(range(first, first + dot), range(first, first + dot)), axis=-1).reshape(-1, 2)
    rows = (row[:, None] + offsets[:, 0]).ravel()
    columns = (column[:, None] + offsets[:, 1]).ravel()
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    image[rows[inside], columns[inside]] = np.repeat(colours, len(offsets), axis=0)[inside]
    return image


def pillars_image(values: np.ndarray, grid: PolarGrid, radius: float, size: int) -> np.ndarray:
    """Draw a map of pillars: each pixel shows the pillar that its centre lies in.

    Args:
        values: float [R, P] at the grid's resolution or a coarser one that divides it, NaN where there is nothing.
        grid: the polar grid.
        radius: half the side of the square, metres.
        size: pixels of a side.

    Returns:
        float32 [size, size]; NaN outside the volume.
    """
    centres = (radius - (np.arange(size) + 0.5) * 2 * radius / size).astype(np.float32)
    x, y = np.meshgrid(centres, centres, indexing="ij")
    polar = to_polar(np.stack((x.ravel(), y.ravel(), np.zeros(size * size, np.float32)), axis=1))
    bins = bin_indices(polar, grid)[:, :2] * values.shape // grid.shape[:2]
    image = values[bins[:, 0], bins[:, 1]].astype(np.float32)
    image[(polar[:, 0] < grid.minimum[0]) | (polar[:, 0] > grid.maximum[0])] = np.nan
    return image.reshape(size, size)


def pillar_map(pillars: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values float [M] of pillars int64 [M, 2], (rho, phi), as a map, float32 of `shape`; NaN elsewhere."""
    image = np.full(shape, np.nan, np.float32)
    image[pillars[:, 0], pillars[:, 1]] = values
    return image
