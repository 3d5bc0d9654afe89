"""What scans look like in numbers: measured on some of them, whatever sensor they come from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from common.base.config import Settings
from common.base.errors import DataError
from common.scans.dataset import Dataset, GridSettings
from common.scans.polar_grid import PolarGrid, bin_indices, to_polar
from common.scans.scan_id import ScanId

SAMPLED_SCANS = 50
POINT_LIMIT = 256
"""Points of a pillar that a student learns from, by default; what `outside` and `crowded` say is of this."""

AT_ORIGIN = 1e-3
"""Metres: no sensor sees itself, nearer points stand for beams that did not come back."""

SECTORS, FEW_IN_SECTOR = 72, 0.1
"""Of the circle, and the share of the usual points of a sector that are few."""

GROUND_RING = 3.0, 15.0
"""Metres from the sensor where the ground is looked for: beyond its own vehicle, before hills."""

LOWEST, HIGHEST, SLICE = -10.0, 2.0, 0.1
"""Heights among which the ground is looked for, and how finely, metres."""

FEWEST_GROUND_POINTS = 20
KEPT_POINTS = 20_000
"""Of each scan, for distributions."""

PERCENTS = 0, 1, 5, 25, 50, 75, 95, 99, 100
BINS = 50


class Distribution(Settings):
    """How values are spread over points.

    Attributes:
        percentiles: value by percent.
        start: of the first bin.
        stop: end of the last bin.
        shares: of the points in each of equal bins.
    """

    percentiles: dict[int, float]
    start: float
    stop: float
    shares: list[float]

    @classmethod
    def of(cls, values: np.ndarray, start: float, stop: float) -> "Distribution":
        """The distribution of float [N], N > 0; values outside of the bins count in none."""
        counts, _ = np.histogram(values, BINS, (start, stop))
        return cls(
            percentiles={
                percent: round(float(value), 4)
                for percent, value in zip(PERCENTS, np.percentile(values, PERCENTS), strict=True)
            },
            start=start,
            stop=stop,
            shares=[round(float(share), 5) for share in counts / len(values)],
        )


class Survey(Settings):
    """What some scans look like. All but `points` and `origin` is about points that are not at the origin.

    Attributes:
        source: which scans.
        scans: number of scans looked at.
        points: mean of a scan.
        origin: share of points at the origin.
        duplicates: share of points that lie exactly where another one of their scan does.
        degrees: of the circle in which there are points.
        ground: height of the ground around the sensor, metres; None where there is none.
        distance: from the sensor's axis, metres.
        height: metres.
        reflectance: as read.
        unlabelled: share of points of class 0 in scans with labels; None without any.
        raw_ids: share of points by raw label id, those at the origin too.
        grid: that the next two are about.
        outside: share of points outside its volume.
        crowded: share of points that a pillar has beyond its limit.
    """

    config_folder: ClassVar[str] = "references"

    source: str
    scans: int
    points: float
    origin: float
    duplicates: float
    degrees: float
    ground: float | None
    distance: Distribution
    height: Distribution
    reflectance: Distribution
    unlabelled: float | None
    raw_ids: dict[int, float]
    grid: GridSettings
    outside: float
    crowded: float


@dataclass
class Measured:
    """Counts over scans, and some of their points.

    Attributes:
        scans, points, origin, duplicates, outside, crowded: counts.
        sectors: int64 [72], points by azimuth.
        ground: heights, one a scan.
        kept: points not at the origin, float32 [K, 4] of each scan.
        labelled, unlabelled: points not at the origin in scans with labels, and those of class 0.
        raw_ids: points by raw id.
        refused: what is wrong with scans that could not be read.
    """

    scans: int = 0
    points: int = 0
    origin: int = 0
    duplicates: int = 0
    outside: int = 0
    crowded: int = 0
    labelled: int = 0
    unlabelled: int = 0
    sectors: np.ndarray = field(default_factory=lambda: np.zeros(SECTORS, np.int64))
    ground: list[float] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)
    raw_ids: Counter[int] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    def add(self, points: np.ndarray, raw: np.ndarray | None, grid: PolarGrid, class_0: Sequence[int]) -> None:
        """Count a scan, float32 [N, 4], and its raw labels, uint32 [N]; `class_0` are the ids that mean nothing."""
        echo = np.abs(points[:, :3]).max(axis=1) > AT_ORIGIN
        echoes = points[echo]
        self.scans += 1
        self.points += len(points)
        self.origin += len(points) - len(echoes)
        if raw is not None:
            self.raw_ids.update(count_ids(raw))
            self.labelled += len(echoes)
            self.unlabelled += int(np.isin(raw[echo] & 0xFFFF, class_0).sum())
        if len(echoes):
            polar = to_polar(echoes[:, :3])
            self.duplicates += duplicates(echoes[:, :3])
            self.outside += int(outside(polar, grid).sum())
            self.crowded += crowded(polar, grid)
            sector = ((polar[:, 1] + np.pi) * (SECTORS / (2 * np.pi))).astype(np.int64) % SECTORS
            self.sectors += np.bincount(sector, minlength=SECTORS)
            height = ground_height(polar)
            self.ground += [] if height is None else [height]
            self.kept.append(echoes[:: -(-len(echoes) // KEPT_POINTS)])

    def summary(self, grid: GridSettings, source: str) -> Survey:
        """All of it in shares and percentiles.

        Raises:
            DataError: there is no point but at the origin.
        """
        if not self.kept:
            why = f"; {self.refused[0]}" if self.refused else ""
            raise DataError(f"{source}: none of the scans has a point that is not at the origin{why}")
        points = np.concatenate(self.kept)
        echoes, brightest = self.points - self.origin, float(points[:, 3].max())
        labels = sum(self.raw_ids.values())
        # A sector with few points counts as empty.
        seen = self.sectors > FEW_IN_SECTOR * np.median(self.sectors[self.sectors > 0])
        return Survey(
            source=source,
            scans=self.scans,
            points=round(self.points / self.scans, 1),
            origin=round(self.origin / self.points, 5),
            duplicates=round(self.duplicates / echoes, 5),
            degrees=float(seen.sum() * 360 / len(seen)),
            ground=round(float(np.median(self.ground)), 3) if self.ground else None,
            distance=Distribution.of(np.hypot(points[:, 0], points[:, 1]), 0.0, 100.0),
            height=Distribution.of(points[:, 2], -6.0, 6.0),
            reflectance=Distribution.of(points[:, 3], 0.0, brightest if brightest > 0 else 1.0),
            unlabelled=round(self.unlabelled / self.labelled, 5) if self.labelled else None,
            raw_ids={raw: round(count / labels, 8) for raw, count in sorted(self.raw_ids.items())},
            grid=grid,
            outside=round(self.outside / echoes, 5),
            crowded=round(self.crowded / echoes, 5),
        )


def count_ids(raw: np.ndarray) -> Counter[int]:
    """Points by label id, of raw labels uint32 [N] without their instances."""
    counts = np.bincount(raw & 0xFFFF)
    ids = np.flatnonzero(counts)
    return Counter(dict(zip(ids.tolist(), counts[ids].tolist(), strict=True)))


def measure(dataset: Dataset, scans: Sequence[ScanId], grid: PolarGrid) -> Measured:
    """Read some scans and count, with a progress bar; what cannot be read is noted in `refused`."""
    class_0 = [raw for raw, label in dataset.label_map.learning_map.items() if label == 0]
    found = Measured()
    for scan in tqdm(scans, unit="scan", desc="looking at scans", leave=False):
        try:
            points = dataset.files.points(scan)
            raw = dataset.files.raw_labels(scan, len(points)) if dataset.has_labels(scan) else None
        except DataError as error:
            found.refused.append(error.message)
        else:
            found.add(points, raw, grid, class_0)
    return found


def duplicates(xyz: np.ndarray) -> int:
    """How many points of float32 [N, 3] lie exactly where an earlier one does."""
    bits = np.ascontiguousarray(xyz).view(np.uint32).astype(np.uint64)
    # A hash of the three numbers; sorting it is much faster than sorting rows.
    odd = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    mixed = np.bitwise_xor.reduce((bits + odd) * odd ^ ((bits * odd) >> np.uint64(29)), axis=1)
    return len(xyz) - len(np.unique(mixed))


def outside(polar: np.ndarray, grid: PolarGrid) -> np.ndarray:
    """Which polar points, float32 [N, 3], lie outside of the grid's volume: they count as being at its border."""
    away = (polar < np.array(grid.minimum, np.float32)) | (polar > np.array(grid.maximum, np.float32))
    beyond: np.ndarray = away[:, 0] | away[:, 2]
    return beyond


def crowded(polar: np.ndarray, grid: PolarGrid) -> int:
    """Points that pillars have beyond the limit."""
    bins = bin_indices(polar, grid)
    counts = np.bincount(bins[:, 0] * grid.shape[1] + bins[:, 1])
    return int(np.maximum(counts - POINT_LIMIT, 0).sum())


def ground_height(polar: np.ndarray) -> float | None:
    """Height of the ground near the sensor, metres: the lowest at which many of the points, float32 [N, 3], lie."""
    nearest, farthest = GROUND_RING
    z = polar[(polar[:, 0] > nearest) & (polar[:, 0] < farthest), 2]
    counts, edges = np.histogram(z, round((HIGHEST - LOWEST) / SLICE), (LOWEST, HIGHEST))
    if counts.sum() < FEWEST_GROUND_POINTS:
        return None
    # Many: half of the most. A road that leans or falls fills several slices in a row.
    many = counts >= counts.max() / 2
    first = int(many.argmax())
    run = int(np.argmin(np.append(many[first:], False)))
    return float(np.median(z[(z >= edges[first]) & (z <= edges[first + run])]))
