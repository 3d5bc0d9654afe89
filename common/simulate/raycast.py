"""Exact intersections of the beams of a spinning sensor with the solids of a street.

A solid moved, turned and scaled to the unit box, cylinder or sphere keeps the parameter t of a ray, so one small
formula per kind serves all sizes (the slab test of Kay and Kajiya, SIGGRAPH 1986, and the roots of a quadratic). Only
beams inside the solid's angles as seen from the sensor are tried.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from common.simulate.shapes import BOX, CYLINDER, ELLIPSOID, Shapes

NOTHING, GROUND = -2, -1
"""In place of the row of a solid where a ray meets none: no return at all, or the plane z = 0."""

DIFFUSE_COSINE = 0.7
"""Cosine of the incidence where leaves and meshes are hit: their surfaces point everywhere."""


@dataclass(frozen=True)
class Beams:
    """Directions of one turn in the sensor's frame, a grid of B elevations and C azimuths.

    Attributes:
        elevations: float64 [B], radians, falling.
        azimuths: float64 [C], radians, evenly spaced over one turn and rising.
    """

    elevations: np.ndarray
    azimuths: np.ndarray

    def directions(self, beam: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Unit directions of some rays, float64 [K, 3]."""
        elevation, azimuth = self.elevations[beam], self.azimuths[column]
        level = np.cos(elevation)
        return np.stack((level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)), axis=1)


def cast(
    beams: Beams, pose: np.ndarray, shapes: Shapes, maximum_range: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first hit of every ray, on a solid or on the plane z = 0, which is always there.

    Args:
        beams: directions in the sensor's frame.
        pose: from the sensor's frame to the world's, float64 [4, 4], metres.
        shapes: the solids.
        maximum_range: metres.
        generator: draws how deep a ray gets into leaves and meshes.

    Returns:
        ranges, float32 [B, C], metres, infinite where nothing is met; and what is hit, int32 [B, C]: the row of a
        solid, GROUND or NOTHING.
    """
    origin, rotation = pose[:3, 3], pose[:3, :3]
    cos_elevation, sin_elevation = _pair(beams.elevations)
    cos_azimuth, sin_azimuth = _pair(beams.azimuths)
    # The third number of each direction in the world: negative for rays that meet the plane z = 0.
    up = rotation[2].astype(np.float32)
    fall = cos_elevation[:, None] * (up[0] * cos_azimuth + up[1] * sin_azimuth) + (up[2] * sin_elevation)[:, None]
    with np.errstate(divide="ignore"):
        ranges = np.where(fall < 0, np.float32(-origin[2]) / fall, np.float32(np.inf))
    ranges[ranges > maximum_range] = np.inf
    hit = np.where(np.isfinite(ranges), GROUND, NOTHING).astype(np.int32)

    for row, distance, top, bottom, first, last in _spans(beams, pose, shapes, maximum_range):
        pieces = _pieces(first, last, len(beams.azimuths))
        # Nearest first: a solid wholly behind others is passed over.
        if all(ranges[top:bottom, left:right].max() <= distance for left, right in pieces):
            continue
        # Into the frame in which the solid is a unit box, cylinder or sphere at the origin.
        half = shapes.half[row]
        cosine, sine = np.cos(shapes.yaw[row]), np.sin(shapes.yaw[row])
        turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]]) / half[:, None]
        start = (turn @ (origin - shapes.centre[row])).astype(np.float32)
        matrix = (turn @ rotation).astype(np.float32)
        level, climb = cos_elevation[top:bottom, None], sin_elevation[top:bottom, None]
        for left, right in pieces:
            across, along = cos_azimuth[left:right], sin_azimuth[left:right]
            step = [level * (m[0] * across + m[1] * along) + m[2] * climb for m in matrix]
            with np.errstate(divide="ignore", invalid="ignore"):
                near, far = _ENTER[shapes.kind[row]](start, step)
            depth = shapes.depth[row]
            if depth:
                near = np.maximum(near, 0) + depth * generator.standard_exponential(near.shape, np.float32)
            best = ranges[top:bottom, left:right]
            first_hit = (near <= far) & (near > 0) & (near < best) & (near <= maximum_range)
            np.copyto(best, near, where=first_hit)
            np.copyto(hit[top:bottom, left:right], row, where=first_hit)
    return ranges, hit


def incidence(points: np.ndarray, directions: np.ndarray, shape: np.ndarray, shapes: Shapes) -> np.ndarray:
    """Cosine between each ray and the surface it hit, float64 [K] in 0..1.

    Args:
        points: float64 [K, 3], where the surface was hit, world frame.
        directions: float64 [K, 3], unit directions of the rays, world frame.
        shape: int [K], row of the solid hit in `shapes`, or GROUND.
    """
    cosine = np.abs(directions[:, 2])
    solid = np.flatnonzero(shape >= 0)
    row = shape[solid]
    yaw, half, kind = shapes.yaw[row], shapes.half[row], shapes.kind[row]
    unit = _turned(points[solid] - shapes.centre[row], yaw) / half
    ray = _turned(directions[solid], yaw)

    normal = unit / half
    flat = (kind == CYLINDER) & (np.abs(unit[:, 2]) > 0.999)
    normal[kind == CYLINDER, 2] = 0
    face = np.abs(unit).argmax(axis=1)
    box = kind == BOX
    normal[box | flat] = 0
    normal[box, face[box]] = 1
    normal[flat, 2] = 1
    length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    found = np.abs((normal * ray).sum(axis=1)) / length
    cosine[solid] = np.where(shapes.depth[row] > 0, DIFFUSE_COSINE, np.minimum(found, 1))
    return cosine


def _pair(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _turned(vectors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Vectors [K, 3] in the axes of solids turned by yaw [K]."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    x, y, z = vectors.T
    return np.stack((cosine * x + sine * y, cosine * y - sine * x, z), axis=1)


def _slab(start: np.float32, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inverse = 1 / step
    middle, reach = -start * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _round(start: np.ndarray, step: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave the unit circle or sphere; NaN where they pass it."""
    a = reduce(np.add, [s * s for s in step])
    b = reduce(np.add, [o * s for o, s in zip(start, step, strict=True)])
    # Distance of the ray from the centre, squared: b * b - a * c would cancel for small solids far away.
    middle = -b / a
    aside = [o + middle * s for o, s in zip(start, step, strict=True)]
    root = np.sqrt((1 - reduce(np.add, [q * q for q in aside])) / a)
    return middle - root, middle + root


def _enter_box(start: np.ndarray, step: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lows, highs = zip(*map(_slab, start, step), strict=True)
    return reduce(np.maximum, lows), reduce(np.minimum, highs)


def _enter_cylinder(start: np.ndarray, step: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    near, far = _round(start[:2], step[:2])
    low, high = _slab(start[2], step[2])
    return np.maximum(near, low), np.minimum(far, high)


_ENTER = {BOX: _enter_box, CYLINDER: _enter_cylinder, ELLIPSOID: _round}


def _pieces(first: int, last: int, count: int) -> list[tuple[int, int]]:
    """Columns first..last, which may begin below 0 or end beyond the last one, as slices."""
    if last - first >= count - 1:
        return [(0, count)]
    first, last = first % count, last % count
    return [(first, last + 1)] if first <= last else [(first, count), (0, last + 1)]


def _spans(
    beams: Beams, pose: np.ndarray, shapes: Shapes, maximum_range: float
) -> Iterable[tuple[int, float, int, int, int, int]]:
    """Solids that may be seen, nearest first: row, distance, beams from top to bottom, columns from first to last.

    These are the beams and columns that meet the solid's bounding box, and perhaps a few more.
    """
    origin, rotation = pose[:3, 3], pose[:3, :3]
    offset = shapes.centre - origin
    local = np.abs(_turned(offset, shapes.yaw))
    distance = np.linalg.norm(np.maximum(local - shapes.half, 0)[:, :2], axis=1)
    rows = np.flatnonzero(distance < maximum_range)
    offset, distance, half, yaw = offset[rows], distance[rows], shapes.half[rows], shapes.yaw[rows]

    # The eight corners of each box, in the axes of the world and in the sensor's.
    signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, 8).T
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y, z = np.moveaxis(half[:, None, :] * signs, 2, 0)
    world = np.stack((cosine * x - sine * y, sine * x + cosine * y, z), axis=2) + offset[:, None, :]
    seen = world @ rotation
    centre = offset @ rotation

    # The sensor leans: a point at height z comes nearer to its axis by at most z times the sine of the lean.
    lean = np.sqrt(max(0.0, 1 - rotation[2, 2] ** 2))
    nearest = distance * rotation[2, 2] - lean * np.abs(world[..., 2]).max(axis=1)
    farthest = np.linalg.norm(seen[..., :2], axis=2).max(axis=1)
    over = nearest <= 1e-6
    nearest = np.maximum(nearest, 1e-6)
    low, high = seen[..., 2].min(axis=1), seen[..., 2].max(axis=1)
    highest = np.arctan2(high, np.where(high > 0, nearest, farthest))
    lowest = np.arctan2(low, np.where(low < 0, nearest, farthest))
    rising = beams.elevations[::-1]
    top = len(rising) - np.searchsorted(rising, highest + 1e-4, side="right")
    bottom = len(rising) - np.searchsorted(rising, lowest - 1e-4, side="left")

    azimuth = np.arctan2(centre[:, 1], centre[:, 0])
    aside = np.arctan2(seen[..., 1], seen[..., 0]) - azimuth[:, None]
    aside = (aside + np.pi) % (2 * np.pi) - np.pi
    count = len(beams.azimuths)
    step = 2 * np.pi / count
    first = np.floor((azimuth + aside.min(axis=1) - beams.azimuths[0]) / step).astype(int)
    last = np.ceil((azimuth + aside.max(axis=1) - beams.azimuths[0]) / step).astype(int)
    first[over], last[over] = 0, count

    kept = np.flatnonzero(top < bottom)
    kept = kept[np.argsort(distance[kept], kind="stable")]
    return zip(*(values[kept].tolist() for values in (rows, distance, top, bottom, first, last)), strict=True)
