"""From the teacher's voxel features to what a bird's-eye-view student can learn from."""

import torch

from common.scan_batch import PillarFeatures
from common.scatter import segment_max
from stage1_dump_teacher.cylinder3d import SparseLayer


def to_pillars(layer: SparseLayer) -> PillarFeatures:
    """Maximum over height of a sparse layer's features (voxel-to-pillar aggregation, Jiang et al. 2023).

    Args:
        layer: sites sorted by (scan, rho, phi, z).

    Returns:
        pillars sorted by (scan, rho, phi); one for each column that has an active site.
    """
    above = layer.sites[:, :3]
    starts = torch.ones(len(above), dtype=torch.bool, device=above.device)
    starts[1:] = (above[1:] != above[:-1]).any(dim=1)
    site_pillar = torch.cumsum(starts, 0) - 1
    pillars = above[starts]
    return PillarFeatures(pillars, segment_max(layer.features, site_pillar, len(pillars)), layer.shape[:2])
