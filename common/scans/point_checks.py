"""What no sensor measures."""

from pathlib import Path

import numpy as np

from common.base.errors import DataError

FARTHEST = 1e4
"""Metres; anything farther is no echo of a sensor on the road, and would drown all others in the teacher's features."""

BRIGHTEST = 65535
"""Largest reflectance that 16 bits hold; most sensors say 0..1 or 0..255."""


def check_points(
    points: np.ndarray,
    source: str | Path,
    next_step: str = "Restore the file, or remove those points and their labels.",
) -> None:
    """Refuse points, float32 [N, 4], that hold what is not finite or what no sensor measures.

    Raises:
        DataError: they do; names `source` and, for what is not finite, `next_step`.
    """
    if not len(points):
        return
    finite = np.isfinite(points)
    if not finite.all():
        bad = ~finite.all(axis=1)
        raise DataError(
            f"{source}: {int(bad.sum())} of {len(points)} points hold NaN or infinity, the first at row "
            f"{int(bad.argmax())}. {next_step}"
        )
    farthest, brightest = np.abs(points[:, :3]).max(), np.abs(points[:, 3]).max()
    if farthest > FARTHEST or brightest > BRIGHTEST:
        raise DataError(
            f"{source}: holds a coordinate of {farthest:.3g} m and a reflectance of {brightest:.3g}; no sensor "
            f"measures more than {FARTHEST:.3g} m and {BRIGHTEST}. Coordinates are in metres around the "
            "sensor, reflectances in 0..1 in SemanticKITTI. Restore or convert the file."
        )
