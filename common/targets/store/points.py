"""Between targets, which are by voxel, and networks that give or take a row for each point."""

import numpy as np
import torch

from common.base.errors import StoreError
from common.scans.polar_grid import PolarGrid, voxelise
from common.targets.teacher_targets import TeacherTargets


def targets_of_points(points: np.ndarray, logits: torch.Tensor, grid: PolarGrid) -> TeacherTargets:
    """Targets of a scan from a teacher's logits of its points: each voxel gets the mean of its points.

    Args:
        points: float32 [N, 4], x, y, z in metres and remission, in the view in which the teacher saw them.
        logits: float [N, classes], class 0 is "unlabelled".
        grid: of the store; points outside its volume belong to the voxels at its border.

    Raises:
        StoreError: there is not one row of logits for each point.
    """
    voxelised = voxelise(points, grid)
    rows = logits.detach().float().cpu()
    if rows.ndim != 2 or len(rows) != len(points):
        raise StoreError(f"logits of shape {tuple(rows.shape)} for {len(points)} points: each point needs one row")
    point_voxel = torch.from_numpy(voxelised.point_voxel)
    sums = rows.new_zeros(len(voxelised.voxels), rows.shape[1]).index_add_(0, point_voxel, rows)
    return targets_of_voxels(torch.from_numpy(voxelised.voxels), sums / torch.bincount(point_voxel)[:, None])


def targets_of_voxels(voxels: torch.Tensor, logits: torch.Tensor) -> TeacherTargets:
    """Targets of a scan from a teacher's logits of its occupied voxels.

    Args:
        voxels: int [V, 3], (rho, phi, z) bin of each occupied voxel on the store's grid, each once, in any order.
        logits: float [V, classes] in the same order, class 0 is "unlabelled".

    Raises:
        StoreError: there is not one row of logits for each voxel.
    """
    if voxels.ndim != 2 or voxels.shape[1] != 3 or logits.ndim != 2 or len(logits) != len(voxels):
        raise StoreError(
            f"logits of shape {tuple(logits.shape)} for voxels of shape {tuple(voxels.shape)}: each voxel needs its "
            "(rho, phi, z) bin and one row of logits"
        )
    bins = voxels.long().cpu()
    order = np.lexsort(bins.numpy().T[::-1])
    bins = torch.cat((bins.new_zeros(len(bins), 1), bins), dim=1)
    return TeacherTargets(bins[order], logits.detach().float().cpu()[order], {})


def logits_of_points(targets: TeacherTargets, points: np.ndarray, grid: PolarGrid) -> torch.Tensor:
    """The teacher's logits of each point of a scan: those of its voxel.

    Args:
        targets: of this one scan, as `TargetStore.read` gives them.
        points: float32 [N, 4], the scan in the view that was read with the targets (`apply_view`).
        grid: of the store.

    Returns:
        float32 [N, classes].

    Raises:
        StoreError: the targets are of another cloud.
    """
    voxelised = voxelise(points, grid)
    if not np.array_equal(targets.voxels[:, 1:].cpu().numpy(), voxelised.voxels):
        raise StoreError(
            "these targets are of another cloud: its occupied voxels are others. Pass the scan's points in the view "
            "that was read with the targets (apply_view), and the store's grid (store.identity.polar_grid)."
        )
    return targets.logits[torch.from_numpy(voxelised.point_voxel).to(targets.logits.device)]
