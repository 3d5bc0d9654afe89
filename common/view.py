"""Views: rigid augmentations of a scan, stored explicitly so that teacher and student can see the very same cloud."""

import zlib

import numpy as np
from pydantic import Field

from common.config import Settings
from common.semantic_kitti import ScanId


class View(Settings):
    """How a scan is moved before it is voxelised: rotate about z, then flip, then scale, then translate.

    Attributes:
        rotation: degrees, counter-clockwise seen from above.
        flip_x: negate x.
        flip_y: negate y.
        scale: factor on x and y.
        translation: metres along x, y, z.
    """

    rotation: float = 0.0
    flip_x: bool = False
    flip_y: bool = False
    scale: float = Field(1.0, gt=0)
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)


IDENTITY = View()


class ViewPolicy(Settings):
    """Which views are drawn.

    Attributes:
        rotate: rotate by any angle, uniformly.
        flip: flip by one of none, x, y, both, uniformly.
        scale: half width of the uniform scale factor around 1 (0.05 in the original), 0 for none.
        translate: standard deviation of the translation in metres along each axis, 0 for none.
        seed: of the draws.
    """

    rotate: bool = True
    flip: bool = True
    scale: float = Field(0.0, ge=0, lt=1)
    translate: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)


def draw_view(policy: ViewPolicy, scan: ScanId, index: int) -> View:
    """View number `index` of a scan; 0 is the identity.

    Each view has a generator of its own, keyed by (seed, scan, index), so it does not depend on the order in which
    scans are visited or on how many processes share the work.
    """
    if index == 0:
        return IDENTITY
    generator = np.random.default_rng([policy.seed, zlib.crc32(str(scan).encode()), index])
    angle, flips, factor = generator.uniform(0.0, 360.0), generator.integers(4), generator.uniform(-1.0, 1.0)
    shift = generator.normal(0.0, 1.0, 3) * policy.translate
    return View(
        rotation=float(angle) if policy.rotate else 0.0,
        flip_x=bool(flips & 1) and policy.flip,
        flip_y=bool(flips & 2) and policy.flip,
        scale=1.0 + float(factor) * policy.scale,
        translation=(float(shift[0]), float(shift[1]), float(shift[2])),
    )


def apply_view(points: np.ndarray, view: View) -> np.ndarray:
    """Move a scan: float32 [N, 4] (x, y, z in metres, remission) to float32 [N, 4]. The identity changes no bit."""
    if view == IDENTITY:
        return points
    angle = np.deg2rad(view.rotation)
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    signs = np.where([view.flip_x, view.flip_y], -1.0, 1.0) * view.scale
    moved = points.copy()
    moved[:, 0] = (cosine * x - sine * y) * signs[0] + view.translation[0]
    moved[:, 1] = (sine * x + cosine * y) * signs[1] + view.translation[1]
    moved[:, 2] = points[:, 2] + view.translation[2]
    return moved
