"""A spinning multi-beam LiDAR: its settings, its beams, and what it reports of the street around it."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from common.base.config import Settings
from common.simulate.assemblies import ROAD
from common.simulate.raycast import GROUND, Beams, cast, incidence
from common.simulate.shapes import Shapes
from common.simulate.street import Street, ground_labels, ground_remission

OUTLIER = 1
"""Raw label of a return that comes from no surface."""

OWN_VEHICLE = (1.65, 2.0, 0.8, 0.65)
"""How far ahead, behind and aside of the sensor its vehicle's roof reaches, and how far below, metres: it hides the
lowest beams ahead and behind. Read off the gaps of real SemanticKITTI scans."""


class SensorSettings(Settings):
    """A sensor; the defaults are a Velodyne HDL-64E as it is mounted in KITTI.

    Attributes:
        beams: number of beams, shared out evenly over the blocks.
        columns: azimuths per turn; 2100 are 0.17 degrees apart.
        field_of_view: highest and lowest beam of each block, degrees, from the highest block to the lowest; the
            default is what KITTI's scans show, a little less than the maker's data sheet says.
        height: of the sensor above the road, metres.
        minimum_range: nearer surfaces return nothing, metres.
        maximum_range: farther surfaces return nothing, metres.
        range_noise: standard deviation along the beam, metres.
        drop_out: share of returns lost at random.
        outliers: share of returns replaced by one from a random range, with raw label 1.
        incidence: how far remission falls with the cosine of the incidence: 0 not at all, 1 like a diffuse surface.
        weakest_return: a return is lost where remission times cosine, times (maximum_range / range)^2, is below this.
        remission_noise: relative standard deviation of the remission.
        own_vehicle: whether the vehicle's own roof hides the lowest beams ahead and behind.
    """

    beams: int = Field(64, ge=1)
    columns: int = Field(2100, ge=8)
    field_of_view: list[tuple[float, float]] = Field([(2.6, -7.8), (-8.4, -23.7)], min_length=1)
    height: float = Field(1.73, gt=0)
    minimum_range: float = Field(1.0, ge=0)
    maximum_range: float = Field(80.0, gt=0)
    range_noise: float = Field(0.015, ge=0)
    drop_out: float = Field(0.01, ge=0, le=1)
    outliers: float = Field(0.0003, ge=0, le=1)
    incidence: float = Field(0.3, ge=0, le=1)
    weakest_return: float = Field(0.04, ge=0)
    remission_noise: float = Field(0.2, ge=0)
    own_vehicle: bool = True

    @model_validator(mode="after")
    def _beams_fall(self) -> "SensorSettings":
        if self.beams % len(self.field_of_view):
            raise ValueError(f"beams: {self.beams} cannot be shared out evenly over {len(self.field_of_view)} blocks")
        angles = beam_degrees(self)
        if np.any(np.diff(angles) >= 0) or np.abs(angles).max() >= 90:
            raise ValueError("field_of_view: beams must fall from above -90..90 degrees, block after block")
        if self.minimum_range >= self.maximum_range:
            raise ValueError("minimum_range: must be below maximum_range")
        return self


@dataclass(frozen=True)
class Scan:
    """What the sensor reports in one turn.

    Attributes:
        points: float32 [N, 4], x, y, z in metres in the sensor's frame, remission in 0..1 in steps of 0.01.
        raw_labels: uint32 [N], semantic id in the low 16 bits, instance in the high 16.
        beam: uint16 [N], which beam saw the point, 0 the highest.
    """

    points: np.ndarray
    raw_labels: np.ndarray
    beam: np.ndarray


def beam_degrees(settings: SensorSettings) -> np.ndarray:
    """Elevation of each beam, float64 [B], degrees, falling."""
    each = settings.beams // len(settings.field_of_view)
    return np.concatenate([np.linspace(top, bottom, each) for top, bottom in settings.field_of_view])


def measure(
    settings: SensorSettings, street: Street, shapes: Shapes, pose: np.ndarray, generator: np.random.Generator
) -> Scan:
    """One turn of the sensor at one place; the vehicle stands still meanwhile.

    Args:
        settings: of the sensor.
        street: gives the ground its classes.
        shapes: the street's solids at that time, the `street.blocks` raised blocks first.
        pose: from the sensor's frame to the world's, float64 [4, 4], metres.
        generator: of everything random in this turn.
    """
    # Each beam turns from straight ahead to the left and around.
    azimuths = (np.arange(settings.columns) + 0.5) * (2 * np.pi / settings.columns)
    beams = Beams(np.radians(beam_degrees(settings)), azimuths)
    first_ranges, first_hits = cast(beams, pose, shapes, settings.maximum_range, generator)
    returned = np.isfinite(first_ranges) & (first_ranges >= settings.minimum_range)
    if settings.own_vehicle:
        returned &= ~_behind_own_roof(beams)
    beam, column = np.nonzero(returned)
    ranges, shape = first_ranges[beam, column].astype(np.float64), first_hits[beam, column]
    local = beams.directions(beam, column)
    directions = local @ pose[:3, :3].T
    hit_at = pose[:3, 3] + ranges[:, None] * directions

    raw, remission = _surface(street, shapes, shape, hit_at)
    cosine = incidence(hit_at, directions, shape, shapes)
    noise = 1 + settings.remission_noise * generator.standard_normal(len(ranges))
    remission = np.clip(remission * noise, 0, 0.99)
    strength = remission * cosine * (settings.maximum_range / ranges) ** 2
    kept = (strength >= settings.weakest_return) & (generator.random(len(ranges)) >= settings.drop_out)
    remission = remission * (1 - settings.incidence * (1 - cosine))
    ranges = ranges + settings.range_noise * generator.standard_normal(len(ranges))
    stray = generator.random(len(ranges)) < settings.outliers
    before = np.maximum(ranges[stray] - settings.minimum_range, 0)
    ranges[stray] = settings.minimum_range + before * generator.random(len(before))
    raw[stray] = OUTLIER

    points = np.column_stack((ranges[:, None] * local, np.round(remission, 2))).astype(np.float32)
    return Scan(points[kept], raw[kept], beam[kept].astype(np.uint16))


def _surface(street: Street, shapes: Shapes, shape: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw labels uint32 [K] and perpendicular remissions float64 [K] of the surfaces hit."""
    on_ground = shape == GROUND
    raw, remission = np.zeros(len(shape), np.uint32), np.zeros(len(shape))
    raw[~on_ground], remission[~on_ground] = shapes.raw[shape[~on_ground]], shapes.remission[shape[~on_ground]]
    block = np.flatnonzero((shape >= 0) & (shape < street.blocks))
    tops = shapes.centre[shape[block], 2] + shapes.half[shape[block], 2]
    # Within 5 mm of its upper edge a kerb counts as the pavement above it.
    on_top = block[points[block, 2] > tops - 0.005]
    on_ground[on_top] = True
    pavement = raw[on_top]
    raw[on_ground] = ground_labels(street.patches, points[on_ground, :2])
    # Rounding can put the very edge of a block beyond its patches, onto the road.
    raw[on_top] = np.where(raw[on_top] == ROAD, pavement, raw[on_top])
    remission[on_ground] = ground_remission(raw[on_ground])
    return raw, remission


def _behind_own_roof(beams: Beams) -> np.ndarray:
    """Which rays the vehicle's own roof hides, bool [B, C]."""
    ahead, behind, aside, below = OWN_VEHICLE
    cosine, sine = np.cos(beams.azimuths), np.sin(beams.azimuths)
    with np.errstate(divide="ignore"):
        reach = np.minimum(np.where(cosine > 0, ahead, behind) / np.abs(cosine), aside / np.abs(sine))
        distance = np.where(beams.elevations < 0, below / np.tan(-beams.elevations), np.inf)
    return distance[:, None] < reach[None, :]
