"""Views: rigid augmentations of a scan, stored explicitly so that teacher and student can see the very same cloud."""

import zlib
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from common.base.config import Settings
from common.base.errors import SettingsError
from common.scans.polar_grid import ALIGNED_BINS
from common.scans.scan_id import ScanId


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
Flip = Literal["none", "x", "y"]


class ViewPolicy(Settings):
    """Which views are drawn.

    Attributes:
        rotate: rotate by any angle, uniformly.
        flip: flip by one of none, x, y, both, uniformly.
        scale: half width of the uniform scale factor around 1 (0.05 in the original), 0 for none.
        translate: standard deviation of the translation in metres along each axis, 0 for none.
        seed: of the draws; a training run that draws a fresh view in every epoch adds its own.
    """

    rotate: bool = True
    flip: bool = True
    scale: float = Field(0.0, ge=0, lt=1)
    translate: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)

    def describe(self) -> str:
        """The policy in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.model_dump().items())


class AnchorSet(Settings):
    """A few views from which every aligned rotation is near: each flip in each of some rotations.

    A teacher's targets move with a rotation by whole multiples of the azimuth bins in its coarsest cells, the better
    the smaller the rotation; they do not move with a flip (see `common.targets.transport`). Flipping x is flipping y
    and turning by 180 degrees, so `none` and `y` cover all flips.

    Attributes:
        flips: each of them is dumped; the first is `none`, so that view 0 is the scan as it is.
        rotations: views of each flip, from no rotation to the last aligned one.
    """

    flips: list[Flip] = Field(["none", "y"], min_length=1)
    rotations: int = Field(4, ge=1)

    @field_validator("flips")
    @classmethod
    def _starts_with_the_scan_itself(cls, flips: list[Flip]) -> list[Flip]:
        if flips[0] != "none" or len(set(flips)) < len(flips):
            raise ValueError("the first flip must be none, which makes view 0 the scan as it is, and none may repeat")
        return flips

    @property
    def count(self) -> int:
        """Number of views."""
        return len(self.flips) * self.rotations


class AnchoredView(NamedTuple):
    """A view that is reached from the anchors on both sides of it.

    Attributes:
        anchor: number of the nearest anchor among the views.
        bins: azimuth bins to rotate by after it, counter-clockwise; a multiple of `ALIGNED_BINS`.
        other: number of the anchor on the other side; None where the view is an anchor, or there is none.
        other_bins: azimuth bins to rotate by after that one; against the sense of `bins`.
    """

    anchor: int
    bins: int
    other: int | None = None
    other_bins: int = 0


def draw_view(policy: ViewPolicy, scan: ScanId, index: int, run_seed: int = 0) -> View:
    """View number `index` of a scan; 0 is the identity.

    Each view has a generator of its own, keyed by (seed, scan, index), so it does not depend on the order in which
    scans are visited or on how many processes share the work. `run_seed` is that of a training run whose views are its
    own; 0 draws those that a store of this policy holds.
    """
    if index == 0:
        return IDENTITY
    own = [run_seed] if run_seed else []
    generator = np.random.default_rng([policy.seed, zlib.crc32(str(scan).encode()), index, *own])
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


def bin_degrees(azimuth_bins: int) -> float:
    """Width of an azimuth bin: the last bin is left to phi = pi, so the others share the circle."""
    return 360.0 / (azimuth_bins - 1)


def rotated(view: View, degrees: float) -> View:
    """A view followed by a rotation about z, counter-clockwise, as one view."""
    # A mirror turns the sense of a rotation around: R(b) F R(a) = F R(a - b).
    sense = -1.0 if view.flip_x != view.flip_y else 1.0
    angle = np.deg2rad(degrees)
    x, y, z = view.translation
    moved = (np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z)
    return view.model_copy(
        update={
            "rotation": (view.rotation + sense * degrees) % 360.0,
            "translation": (float(moved[0]), float(moved[1]), float(moved[2])),
        }
    )


def rotated_by_bins(view: View, bins: int, azimuth_bins: int) -> View:
    """A view followed by a rotation by whole azimuth bins of a grid; 0 bins change nothing."""
    return rotated(view, bins * bin_degrees(azimuth_bins)) if bins else view


def aligned_rotations(azimuth_bins: int) -> int:
    """Number of rotations by multiples of `ALIGNED_BINS` before the circle is full."""
    return (azimuth_bins - 2) // ALIGNED_BINS + 1


def anchor_positions(rotations: int, azimuth_bins: int) -> list[int]:
    """Rotations of the anchors of one flip, in units of `ALIGNED_BINS`: the first, the last, and others between.

    All that is left of the circle lies between the last and the first, and no aligned rotation lies there: the circle
    has one bin less than the grid, so going on from the last would meet the first out of step.

    Raises:
        SettingsError: the grid has fewer aligned rotations.
    """
    positions = aligned_rotations(azimuth_bins)
    if rotations > positions:
        raise SettingsError(
            f"views.anchors.rotations: {rotations}, but {azimuth_bins} azimuth bins have only {positions} rotations by "
            f"multiples of {ALIGNED_BINS} bins; choose at most {positions}"
        )
    gaps = max(rotations - 1, 1)
    return [(2 * number * (positions - 1) + gaps) // (2 * gaps) for number in range(rotations)]


def anchor_view(anchors: AnchorSet, index: int, azimuth_bins: int) -> View:
    """Anchor number `index`: its flip first, then its rotation. Anchor 0 is the identity.

    Raises:
        SettingsError: the grid has no room for the anchors.
    """
    flip, rotation = divmod(index, anchors.rotations)
    flipped = View(flip_x=anchors.flips[flip] == "x", flip_y=anchors.flips[flip] == "y")
    bins = ALIGNED_BINS * anchor_positions(anchors.rotations, azimuth_bins)[rotation]
    return rotated_by_bins(flipped, bins, azimuth_bins)


def from_anchors(anchors: AnchorSet, flip: int, position: int, azimuth_bins: int) -> AnchoredView:
    """How flip number `flip` in one of the aligned rotations is reached from the anchors of that flip.

    `position` is the rotation in units of `ALIGNED_BINS`, 0..`aligned_rotations` - 1.
    """
    steps = [position - anchor for anchor in anchor_positions(anchors.rotations, azimuth_bins)]
    numbers = sorted(range(len(steps)), key=lambda number: abs(steps[number]))
    nearest, first = numbers[0], flip * anchors.rotations
    across = [number for number in numbers if steps[number] * steps[nearest] < 0]
    if not across:
        return AnchoredView(first + nearest, ALIGNED_BINS * steps[nearest])
    other = across[0]
    return AnchoredView(first + nearest, ALIGNED_BINS * steps[nearest], first + other, ALIGNED_BINS * steps[other])


def draw_anchored_view(anchors: AnchorSet, azimuth_bins: int, seed: int, scan: ScanId, epoch: int) -> AnchoredView:
    """A flip and an aligned rotation, drawn uniformly and from nothing but (seed, scan, epoch)."""
    generator = np.random.default_rng([seed, zlib.crc32(str(scan).encode()), epoch])
    flip, position = generator.integers(len(anchors.flips)), generator.integers(aligned_rotations(azimuth_bins))
    return from_anchors(anchors, int(flip), int(position), azimuth_bins)
