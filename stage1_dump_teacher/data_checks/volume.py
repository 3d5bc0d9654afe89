"""A volume and a grid that fit some points."""

import numpy as np

from common.scans.dataset import GridSettings, VolumeSettings
from common.scans.polar_grid import to_polar
from stage1_dump_teacher.data_checks.survey import outside

BIN = 0.1
"""Metres along rho, about PolarNet's."""

RADIAL_STEP, MOST_RADIAL = 16, 640
AZIMUTH_BINS, HEIGHT_BINS = 360, 32
"""The published ones."""

BELOW_GROUND, ABOVE_GROUND = 1.0, 3.0
"""Metres that the volume reaches below and above the ground at least, about PolarNet's."""


def fitting_grid(points: np.ndarray, ground: float | None) -> tuple[GridSettings, float]:
    """A grid for points like these, and the share of them in its volume.

    Args:
        points: float32 [N, 4], N > 0, none at the origin.
        ground: its height, metres.
    """
    polar = to_polar(points[:, :3])
    nearest, farthest = np.percentile(polar[:, 0], (0.2, 98))
    lowest, highest = np.percentile(polar[:, 2], (0.5, 98))
    if ground is not None:
        lowest, highest = min(lowest, ground - BELOW_GROUND), max(highest, ground + ABOVE_GROUND)
    start, stop = float(np.floor(nearest)), float(5 * np.ceil((farthest + 1e-3) / 5))
    bottom, top = float(np.floor(2 * lowest) / 2), float(np.ceil(2 * highest + 1e-3) / 2)
    radial = int(np.clip(round((stop - start) / BIN / RADIAL_STEP), 1, MOST_RADIAL // RADIAL_STEP)) * RADIAL_STEP
    grid = GridSettings(
        volume=VolumeSettings(rho=(start, stop), z=(bottom, top)), shape=(radial, AZIMUTH_BINS, HEIGHT_BINS)
    )
    return grid, float(1 - outside(polar, grid.grid()).mean())


def grid_lines(grid: GridSettings) -> list[str]:
    """A grid with a volume of its own as lines of YAML."""
    volume = grid.volume
    assert isinstance(volume, VolumeSettings)
    return [
        "grid:",
        f"  volume: {{rho: [{volume.rho[0]:g}, {volume.rho[1]:g}], z: [{volume.z[0]:g}, {volume.z[1]:g}]}}",
        f"  shape: [{', '.join(map(str, grid.shape))}]     # bins along rho, phi, z",
    ]
