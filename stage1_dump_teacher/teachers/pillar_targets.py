"""From the teacher's voxel features to what a bird's-eye-view student can learn from."""

from collections.abc import Sequence

import torch

from common.networks.cylinder3d import Cylinder3D
from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures


@torch.no_grad()
def teacher_targets(
    teacher: Cylinder3D, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False
) -> TeacherTargets:
    """Run the teacher on a batch and reduce what it says to targets, on the batch's device.

    Args:
        teacher: frozen, in eval mode.
        batch: voxelised scans on the teacher's device.
        layers: names of teacher layers.
        voxel_features: keep the layers' voxel features too.
    """
    outputs = teacher(batch, tuple(layers))
    pillars = {name: to_pillars(layer) for name, layer in outputs.layers.items()}
    return TeacherTargets(batch.voxels, outputs.logits, pillars, outputs.layers if voxel_features else {})


def to_pillars(layer: VoxelFeatures) -> PillarFeatures:
    """Maximum over height of a sparse layer's features (voxel-to-pillar aggregation, Jiang et al. 2023).

    Args:
        layer: voxels sorted by (scan, rho, phi, z).

    Returns:
        pillars sorted by (scan, rho, phi); one for each column that has an active voxel.
    """
    above = layer.voxels[:, :3]
    starts = torch.ones(len(above), dtype=torch.bool, device=above.device)
    starts[1:] = (above[1:] != above[:-1]).any(dim=1)
    voxel_pillar = torch.cumsum(starts, 0) - 1
    pillars = above[starts]
    return PillarFeatures(pillars, segment_max(layer.features, voxel_pillar, len(pillars)), layer.shape[:2])
