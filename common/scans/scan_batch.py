"""Voxelised scans, batched as PyTorch tensors for teacher and student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.base.errors import DataError
from common.base.records import move_tensors, no_rows
from common.scans.polar_grid import POINT_COLUMNS, VoxelisedScan
from common.scans.scan_id import ScanId


@dataclass(frozen=True)
class ScanBatch:
    """B scans one after another. Voxels are sorted by (scan, rho, phi, z); pillars by (scan, rho, phi).

    Attributes:
        point_features: float32 [N, 9].
        point_voxel: int64 [N], row in `voxels` of each point.
        voxels: int64 [V, 4], (scan, rho, phi, z) of each occupied voxel.
        voxel_labels: int64 [V], 0 = unlabelled.
        pillars: int64 [P, 3], (scan, rho, phi) of each occupied pillar.
        voxel_pillar: int64 [V], row in `pillars` of each voxel.
        grid_shape: bins along rho, phi, z.
        scans: number of scans B.
        labelled: whether any voxel has a label, known without asking the device.
        fullest_pillar: points of the pillar that has most, likewise.
        names: of the scans, such as `00/000000`; empty ones where they are not known.
    """

    point_features: torch.Tensor
    point_voxel: torch.Tensor
    voxels: torch.Tensor
    voxel_labels: torch.Tensor
    pillars: torch.Tensor
    voxel_pillar: torch.Tensor
    grid_shape: tuple[int, int, int]
    scans: int
    labelled: bool
    fullest_pillar: int
    names: tuple[str, ...] = ()

    @property
    def point_pillar(self) -> torch.Tensor:
        """Row in `pillars` of each point, int64 [N]."""
        return self.voxel_pillar[self.point_voxel]

    @property
    def scan_ids(self) -> list[ScanId]:
        """Which scans these are.

        Raises:
            DataError: they are not known.
        """
        if len(self.names) < self.scans or not all(self.names):
            raise DataError(
                "these points are no scan of a dataset (two mixed scans are none), so recorded predictions or averaged "
                "views, which go by the names of scans, have no answer for them. Where scans are mixed, train from a "
                "store of these targets (targets=cache), or set mix=null."
            )
        return [ScanId.parse(name) for name in self.names]

    def clouds(self) -> list[np.ndarray]:
        """Points of each scan in the order of the dataset, in the view that was voxelised: float32 [N, 4] each."""
        points = self.point_features[:, POINT_COLUMNS].cpu().numpy()
        sizes = torch.bincount(self.voxels[self.point_voxel, 0], minlength=self.scans).cpu().numpy()
        return np.split(points, np.cumsum(sizes)[:-1])

    def to(self, device: torch.device | str) -> "ScanBatch":
        """The same batch on another device."""
        return move_tensors(self, device)

    def without_scans(self) -> "ScanBatch":
        """A batch of no scan on the same grid."""
        return replace(no_rows(self), scans=0, labelled=False, fullest_pillar=0, names=())


def batch_scans(scans: Sequence[VoxelisedScan], grid_shape: tuple[int, int, int]) -> ScanBatch:
    """Put voxelised scans one after another."""
    sizes = [len(scan.voxels) for scan in scans]
    scan_of_voxel = np.repeat(np.arange(len(scans), dtype=np.int64), sizes)
    voxels = np.column_stack((scan_of_voxel, np.concatenate([scan.voxels for scan in scans])))
    first_voxel = np.cumsum([0] + sizes)
    point_voxel = np.concatenate([scan.point_voxel + first for scan, first in zip(scans, first_voxel, strict=False)])
    pillars, voxel_pillar = pillars_of(voxels)
    voxel_labels = np.concatenate([scan.voxel_labels for scan in scans])
    # Both for the training loop, which must not wait for a GPU to learn them.
    points_of_pillar = np.bincount(voxel_pillar[point_voxel], minlength=1)
    return ScanBatch(
        point_features=torch.from_numpy(np.concatenate([scan.point_features for scan in scans])),
        point_voxel=torch.from_numpy(point_voxel),
        voxels=torch.from_numpy(voxels),
        voxel_labels=torch.from_numpy(voxel_labels.astype(np.int64)),
        pillars=torch.from_numpy(pillars),
        voxel_pillar=torch.from_numpy(voxel_pillar),
        grid_shape=grid_shape,
        scans=len(scans),
        labelled=bool(voxel_labels.any()),
        fullest_pillar=int(points_of_pillar.max()),
        names=tuple(scan.name for scan in scans),
    )


def pillars_of(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pillars of sorted voxels.

    Args:
        voxels: int [V, K], sorted by row; the last column is the height bin.

    Returns:
        pillars int64 [P, K - 1] sorted, and the row in them of each voxel, int64 [V].
    """
    above = voxels[:, :-1]
    starts = np.ones(len(voxels), bool)
    starts[1:] = (above[1:] != above[:-1]).any(axis=1)
    return np.ascontiguousarray(above[starts], dtype=np.int64), np.cumsum(starts) - 1
