"""A made-up street as data, and what covers its ground."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from common.simulate.assemblies import LANE_MARKING, OTHER_GROUND, PARKING, ROAD, SIDEWALK, TERRAIN, VEGETATION
from common.simulate.shapes import Shapes

KERB = 0.12
"""Height of pavements and plots above the road, metres."""

CLEARANCE = 3.5
"""How near moving things may come to the sensor, metres."""

GROUND_REMISSION = {ROAD: 0.29, PARKING: 0.34, SIDEWALK: 0.36, OTHER_GROUND: 0.38}
GROUND_REMISSION |= {LANE_MARKING: 0.6, TERRAIN: 0.4, VEGETATION: 0.36}


class Patch(NamedTuple):
    """A rectangle of ground along the axes of the world, metres, and its raw label."""

    west: float
    east: float
    south: float
    north: float
    raw: int


@dataclass(frozen=True)
class Street:
    """One street with its side streets.

    Attributes:
        shapes: the solids; the first `blocks` are the raised blocks between the streets.
        patches: what covers the ground, later ones on top; elsewhere it is road.
        path: float64 [P, 2], where the sensor drives, a point each 0.1 m.
    """

    shapes: Shapes
    blocks: int
    patches: list[Patch]
    path: np.ndarray


def ground_labels(patches: list[Patch], points: np.ndarray) -> np.ndarray:
    """Raw label of the ground at places float64 [K, 2], x and y in the world in metres, uint32 [K]."""
    # Sorted by x, a patch concerns one run of points.
    order = np.argsort(points[:, 0], kind="stable")
    x, y = points[order, 0], points[order, 1]
    south, north = y.min(initial=np.inf), y.max(initial=-np.inf)
    painted = np.full(len(points), ROAD, np.uint32)
    begins = np.searchsorted(x, [patch.west for patch in patches])
    ends = np.searchsorted(x, [patch.east for patch in patches])
    for patch, begin, end in zip(patches, begins.tolist(), ends.tolist(), strict=True):
        if begin < end and patch.south < north and patch.north > south:
            run = y[begin:end]
            painted[begin:end][(run >= patch.south) & (run < patch.north)] = patch.raw
    labels = np.empty_like(painted)
    labels[order] = painted
    return labels


def ground_remission(raw: np.ndarray) -> np.ndarray:
    """Remission of the ground seen from straight above, by raw label [K], float64 [K]."""
    table = np.full(max(int(raw.max(initial=0)), *GROUND_REMISSION) + 1, 0.3)
    table[list(GROUND_REMISSION)] = list(GROUND_REMISSION.values())
    return table[raw]


def at_time(street: Street, seconds: float, place: np.ndarray) -> Shapes:
    """The solids of a street after so many seconds, without the moving things that would touch the sensor's vehicle.

    Its `place` is float64 [2], metres.
    """
    shapes = street.shapes
    centre = shapes.centre.copy()
    centre[:, :2] += seconds * shapes.velocity
    moving = (shapes.velocity != 0).any(axis=1)
    near = moving & (np.linalg.norm(centre[:, :2] - place, axis=1) - shapes.half[:, :2].max(axis=1) < CLEARANCE)
    touching = np.unique(shapes.raw[near])
    return replace(shapes, centre=centre).take(~(moving & np.isin(shapes.raw, touching)))
