"""Output distillation of PVKD at points."""

import torch

from common.scans.scan_batch import ScanBatch
from stage2_train_student.distillation.voxel_output import VoxelOutput


class PointOutput(VoxelOutput):
    """Mean of `output_divergence` over points, each with the logits of its voxel (Hou et al., CVPR 2022).

    The paper's networks refine voxels to points with a module of their own, which neither the published Cylinder3D
    code nor PVKD's contains (issue 42 of xinge008/Cylinder3D, issue 3 of cardwing/Codes-for-PVKD). Without it a
    point's logits are its voxel's, so this term is `voxel_output` with each voxel counted once for each of its points.
    """

    name = "point_output"

    def counts(self, batch: ScanBatch) -> torch.Tensor:
        """Points of each voxel, int64 [V]."""
        return torch.bincount(batch.point_voxel, minlength=len(batch.voxels))
