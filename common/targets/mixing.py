"""Two scans mixed by azimuth sectors, and their targets with them (PolarMix, Xiao et al., NeurIPS 2022, scene level).

The published augmentation exchanges the points of half the circle between two scans. Here sectors begin and end at
multiples of `ALIGNED_BINS`: every cell of every layer then lies in one sector, so what a teacher said of both scans
mixes as their points do. Near a cut it was said beside other neighbours; the command `consistency` with `--policy mix`
measures what that costs. Instances are not pasted, which would ask for new targets.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from common.base.config import Settings
from common.base.errors import SettingsError
from common.base.records import move_tensors
from common.scans.polar_grid import ALIGNED_BINS, VoxelisedScan
from common.scans.scan_id import ScanId
from common.targets.store.scan_file import EncodedTargets
from common.targets.teacher_targets import Layer, TeacherTargets, layer_by_layer
from common.targets.transport import layer_stride, merged

MIXING = zlib.crc32(b"mixing")
"""Sets its draws apart from those of views, which are the same with and without it."""


class MixSettings(Settings):
    """How often and how scans are mixed.

    Attributes:
        probability: share of scans into which another one is mixed.
        sectors: taken from the other scan, evenly spread; together they are half of the circle, up to a cell.
    """

    probability: float = Field(0.5, gt=0, le=1)
    sectors: int = Field(1, ge=1)

    def __str__(self) -> str:
        sectors = "1 sector" if self.sectors == 1 else f"{self.sectors} sectors"
        return f"{sectors} of another scan in {100 * self.probability:g} % of scans"


class Mixing(NamedTuple):
    """What is taken from which other scan.

    Attributes:
        partner: the other scan.
        cells: numbers of the cells that are taken from it, each `ALIGNED_BINS` azimuth bins from bin 0 on.
    """

    partner: ScanId
    cells: tuple[int, ...]

    def taken(self, azimuth_bins: int) -> np.ndarray:
        """Which azimuth bins are taken from the other scan, bool [azimuth bins]."""
        return np.isin(np.arange(azimuth_bins) // ALIGNED_BINS, self.cells)


def most_sectors(azimuth_bins: int) -> int:
    """Sectors that a grid has room for, with a cell at least in each and between them."""
    return -(-azimuth_bins // ALIGNED_BINS) // 2


def draw_mixing(
    settings: MixSettings, azimuth_bins: int, seed: int, scan: ScanId, epoch: int, scans: Sequence[ScanId]
) -> Mixing | None:
    """The other scan and the cells of an epoch, drawn from nothing but (seed, scan, epoch); None for no mixing.

    Args:
        settings: how often, and how many sectors, at most `most_sectors`.
        azimuth_bins: of the grid.
        seed: of the run.
        scan: into which another one is mixed.
        epoch: from 0.
        scans: two at least, all different, to choose the other one from.
    """
    generator = np.random.default_rng([seed, zlib.crc32(str(scan).encode()), epoch, MIXING])
    count = -(-azimuth_bins // ALIGNED_BINS)
    chance, start = generator.random(), int(generator.integers(count))
    first, second = generator.choice(len(scans), 2, replace=False)
    if chance >= settings.probability:
        return None
    parts = 2 * settings.sectors
    edges = [start + part * count // parts for part in range(parts + 1)]
    cells = [number % count for part in range(0, parts, 2) for number in range(edges[part], edges[part + 1])]
    return Mixing(scans[first] if scans[first] != scan else scans[second], tuple(sorted(cells)))


def mixed_scan(own: VoxelisedScan, other: VoxelisedScan, taken: np.ndarray) -> VoxelisedScan:
    """A scan with some azimuth bins of another one in the place of its own: what voxelising the chosen points gives.

    Args:
        own: the scan.
        other: on the same grid.
        taken: bool [azimuth bins], `Mixing.taken`.
    """
    scans = (own, other)
    rows = [np.flatnonzero(bins[scan.voxels[:, 1]]) for scan, bins in zip(scans, (~taken, taken), strict=True)]
    voxels = np.concatenate([scan.voxels[kept] for scan, kept in zip(scans, rows, strict=True)])
    labels = np.concatenate([scan.voxel_labels[kept] for scan, kept in zip(scans, rows, strict=True)])
    linear = np.ravel_multi_index(tuple(voxels.T), tuple(1 + voxels.max(axis=0, initial=0)))
    # Both halves are in order, and a stable sort is fast on those.
    order = np.argsort(linear, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    features, point_voxel = [], []
    for scan, kept, new in zip(scans, rows, np.split(place, [len(rows[0])]), strict=True):
        row_of = np.full(len(scan.voxels), -1)
        row_of[kept] = new
        of_points = row_of[scan.point_voxel]
        features.append(scan.point_features[of_points >= 0])
        point_voxel.append(of_points[of_points >= 0])
    return VoxelisedScan(np.concatenate(features), np.concatenate(point_voxel), voxels[order], labels[order])


def mixed_targets(
    own: TeacherTargets, other: TeacherTargets, taken: np.ndarray, grid_shape: tuple[int, int, int]
) -> TeacherTargets:
    """Targets of a mixed scan: those of both scans, each where its points are.

    Args:
        own: of one scan.
        other: of the other one, with the same layers.
        taken: bool [azimuth bins], `Mixing.taken`.
        grid_shape: bins along rho, phi, z.

    Raises:
        SettingsError: a layer has cells that a cut goes through.
    """
    bins = torch.from_numpy(taken).to(own.voxels.device)

    def joined(*pair: Layer) -> Layer:
        shape = pair[0][2]
        stride = layer_stride(grid_shape[1], shape[1])
        if ALIGNED_BINS % stride:
            raise SettingsError(
                f"scans are cut at multiples of {ALIGNED_BINS} azimuth bins, which goes through cells of a layer of "
                f"stride {stride}; set mix=null, or do without this layer"
            )
        sites, features = [], []
        for (places, values, _), chosen in zip(pair, (~bins, bins), strict=True):
            kept = chosen[places[:, 2] * stride]
            sites.append(places[kept])
            features.append(values[kept])
        return *merged(torch.cat(sites), torch.cat(features), shape), shape

    voxels, logits, _ = joined((own.voxels, own.logits, grid_shape), (other.voxels, other.logits, grid_shape))
    return TeacherTargets(voxels, logits, *layer_by_layer([own, other], joined))


@dataclass(frozen=True)
class MixedTargets:
    """Targets of two scans as stored, mixed where they are decoded.

    Attributes:
        own: of one scan.
        other: of the other one.
        taken: bool [azimuth bins], `Mixing.taken`.
    """

    own: EncodedTargets
    other: EncodedTargets
    taken: np.ndarray

    def to(self, device: torch.device | str) -> "MixedTargets":
        """The same targets on another device."""
        return move_tensors(self, device)

    def decode(self) -> TeacherTargets:
        """`mixed_targets`, on the device where they are."""
        return mixed_targets(self.own.decode(), self.other.decode(), self.taken, self.own.grid_shape)
