"""The solids a simulated street is made of: boxes, upright cylinders and ellipsoids."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BOX, CYLINDER, ELLIPSOID = 0, 1, 2


class Part(NamedTuple):
    """One solid of an assembly.

    Attributes:
        kind: BOX, CYLINDER (upright, elliptic) or ELLIPSOID.
        centre: x, y, z in metres.
        half: half extents along the part's own axes, metres.
        raw: raw SemanticKITTI label, the instance in the high 16 bits.
        remission: of a perpendicular hit, 0..1.
        depth: mean depth a beam travels inside before something reflects it, metres; 0 is a closed surface.
        yaw: turn about the vertical, radians.
        velocity: metres per second along x and y.
    """

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    raw: int
    remission: float
    depth: float = 0.0
    yaw: float = 0.0
    velocity: tuple[float, float] = (0.0, 0.0)


PART = np.dtype("u1, 3f8, 3f8, u4, f4, f4, f8, 2f8")
PART.names = Part._fields
"""The same as an array's row."""


@dataclass(frozen=True)
class Shapes:
    """M solids as arrays, see `Part`: uint8 [M], float64 [M, 3] twice, uint32 [M], float32 [M] twice, float64 [M] and
    float64 [M, 2]."""

    kind: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    raw: np.ndarray
    remission: np.ndarray
    depth: np.ndarray
    yaw: np.ndarray
    velocity: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: np.ndarray) -> "Shapes":
        """Some of the solids, by row numbers or a mask."""
        return Shapes(*(values[rows] for values in vars(self).values()))


def shapes_of(parts: Iterable[Part]) -> Shapes:
    """Parts as arrays."""
    table = np.array(list(parts), PART)
    return Shapes(*(np.ascontiguousarray(table[name]) for name in Part._fields))


def placed(
    parts: Iterable[Part], place: tuple[float, float, float], yaw: float, instance: int = 0, speed: float = 0.0
) -> list[Part]:
    """An assembly, made around the origin with its front along x, put into the world.

    Args:
        parts: of the assembly.
        place: where its origin goes, x, y, z in metres.
        yaw: where its front points, radians.
        instance: instance id of all parts, 0 for none.
        speed: along its front, metres per second.
    """
    (x, y, z), cosine, sine = place, np.cos(yaw), np.sin(yaw)
    velocity = (speed * cosine, speed * sine)

    def moved(part: Part) -> Part:
        ahead, aside, up = part.centre
        centre = (x + cosine * ahead - sine * aside, y + sine * ahead + cosine * aside, z + up)
        return part._replace(centre=centre, yaw=part.yaw + yaw, raw=part.raw | instance << 16, velocity=velocity)

    return list(map(moved, parts))
