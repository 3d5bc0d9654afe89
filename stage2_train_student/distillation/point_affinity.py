"""Affinity distillation of PVKD between points."""

import torch

from common.scans.scan_batch import ScanBatch
from stage2_train_student.distillation.supervoxels import kept_rows
from stage2_train_student.distillation.voxel_affinity import VoxelAffinity


class PointAffinity(VoxelAffinity):
    """As `VoxelAffinity`, between points of a block (Hou et al., CVPR 2022).

    The paper takes the point network's output, one feature a point. A store keeps none of these; what stands for them
    is `vox`, the same features after the maximum over each voxel and the compression that follows: the last ones
    before the sparse network. So points of one voxel are alike to each other in both networks, and a voxel counts by
    the number of its points.
    """

    name = "point_affinity"

    def kept(self, draw: torch.Tensor, minority: torch.Tensor, draws: int, batch: ScanBatch) -> torch.Tensor:
        """The voxels of the points to compare."""
        voxel = batch.point_voxel
        points = kept_rows(draw[voxel], minority[voxel], draws, self.supervoxels.points)
        return torch.where(points >= 0, voxel[points.clamp(min=0)], -1)
