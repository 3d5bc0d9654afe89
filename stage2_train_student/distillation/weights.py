"""How much a teacher's word counts in the distillation terms: by its confidence, and by whether the labels bear it out.

Of an occupied voxel v, with the teacher's probabilities p = softmax(logits) over all classes but "unlabelled", which is
never an answer, and the voxel's label y:

    w(v) = c(v) * t(v)
    c(v) = max over classes of p, with `confidence`; else 1
    t(v) = 0 where v has a label and the likeliest class is another one, with `trust_labels`; else 1

Of a cell of a map (a pillar, at a layer's resolution), w is the mean over its occupied voxels. The weights of a batch
are divided by their mean over all that is occupied, and what is not occupied weighs 1. So every term becomes a weighted
mean of what it was the plain mean of, and keeps its scale. Where all weights are 0 they stay 0.
"""

import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.targets.transport import layer_stride
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.settings import DistillationSettings


def voxel_weights(
    settings: DistillationSettings, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
) -> torch.Tensor | None:
    """Weight of each occupied voxel, float [V] of mean 1 over the batch in all processes; None where all are 1."""
    raw = raw_weights(settings, targets, batch)
    return None if raw is None else of_mean_one(raw, processes)


def cell_weights(
    settings: DistillationSettings,
    targets: TeacherTargets,
    batch: ScanBatch,
    shape: tuple[int, int],
    processes: Processes = ALONE,
) -> torch.Tensor | None:
    """Weights of the cells of a map, float [B, 1, R, P] with a mean of 1; None where all are 1.

    Raises:
        SettingsError: the map's cells are not whole numbers of the grid's: its `shape` (R, P) does not divide that.
    """
    raw = raw_weights(settings, targets, batch)
    if raw is None:
        return None
    radial, azimuth = (layer_stride(bins, cells) for bins, cells in zip(batch.grid_shape, shape, strict=False))
    scan, rho, phi, _ = batch.voxels.unbind(1)
    cell = (scan * shape[0] + rho // radial) * shape[1] + phi // azimuth
    sums = raw.new_zeros(batch.scans * shape[0] * shape[1], 2)
    sums = sums.index_add(0, cell, torch.stack((raw, torch.ones_like(raw)), dim=1))
    total, count = sums.unbind(1)
    weights, occupied = total / count.clamp(min=1), (count > 0).to(raw.dtype)
    weights = torch.where(count > 0, weights / mean_over(weights, occupied, processes), 1.0)
    return weights.view(batch.scans, 1, *shape)


def raw_weights(settings: DistillationSettings, targets: TeacherTargets, batch: ScanBatch) -> torch.Tensor | None:
    """w of each occupied voxel as the head of this file has it, float [V] in 0..1; None where neither setting is on."""
    if not (settings.confidence or settings.trust_labels):
        return None
    largest, answer = targets.logits[:, 1:].float().softmax(dim=1).max(dim=1)
    weights, labels = largest if settings.confidence else torch.ones_like(largest), batch.voxel_labels
    return weights * ((labels == 0) | (labels == answer + 1)) if settings.trust_labels else weights


def of_mean_one(values: torch.Tensor, processes: Processes) -> torch.Tensor:
    """The values divided by their mean over all processes."""
    return values / mean_over(values, torch.ones_like(values), processes)


def mean_over(values: torch.Tensor, counted: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Mean of those values whose `counted` is 1, over all processes; 1 where it is 0 or there is none, to divide by."""
    total, count = processes.sum(torch.stack(((values * counted).sum(), counted.sum())))
    return torch.where(total > 0, total / count.clamp(min=1), 1.0)
