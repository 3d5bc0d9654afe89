"""Soft logits: the student's class probabilities of each voxel learn from the teacher's."""

import torch
from torch.utils.checkpoint import checkpoint

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.settings import LOGIT_SCALE, LOGIT_THRESHOLD
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.distillation.weights import of_mean_one, voxel_weights
from stage2_train_student.students.pillar_maps import pillar_rows, pillars_last
from stage2_train_student.students.student import StudentOutputs

LOGIT_EPSILON = 1e-6
CHUNK_PILLARS = 8192


class SoftLogits(Term):
    """The divergence of teacher and student over the voxels of the chosen support."""

    name = "logit"
    class_weights: torch.Tensor

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.register_buffer("class_weights", context.class_weights, persistent=False)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """`logit`, over the voxels that the setting `support` names."""
        teacher = targets.logits.float()
        weights = voxel_weights(self.settings, targets, batch, processes)
        if self.settings.logit_class_weights:
            balance = expected_class_weights(teacher, self.class_weights, processes)
            weights = balance if weights is None else of_mean_one(weights * balance, processes)
        arguments = (self.settings.logit_scale, self.settings.logit_threshold, processes, weights)
        if self.settings.support == "occupied":
            return {"logit": logit_distillation_loss(outputs.voxel_logits, teacher, *arguments)}
        return {"logit": dense_logit_distillation_loss(outputs, teacher, batch, *arguments)}


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Softened divergence of each voxel, float [...]: mean over classes of p_t log((p_t + 1e-6) / (p_s + 1e-6)).

    Both logits are float [..., classes], of shapes that broadcast; `scale`, the inverse of a temperature, is a factor
    on both before the softmax.
    """
    student = (student_logits * scale).softmax(dim=-1)
    teacher = (teacher_logits * scale).softmax(dim=-1)
    return (teacher * ((teacher + LOGIT_EPSILON).log() - (student + LOGIT_EPSILON).log())).mean(dim=-1)


def expected_class_weights(
    teacher_logits: torch.Tensor, class_weights: torch.Tensor, processes: Processes = ALONE
) -> torch.Tensor:
    """Loss weight of each voxel's class as the teacher sees it: sum over classes of p_t w, divided by its mean.

    Without such weights, voxels of roads and buildings outweigh all rare classes together. "Unlabelled" is never an
    answer. From logits float [V, classes] and weights float [classes] to float [V], of mean 1 over all processes.
    """
    # Not a matrix product, which autocast would round.
    expected = (teacher_logits[:, 1:].softmax(dim=1) * class_weights[1:].to(teacher_logits.dtype)).sum(dim=1)
    return of_mean_one(expected, processes)


def sum_and_count(entries: torch.Tensor, threshold: float | None, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum and number of the entries above the threshold, float [2]; with weights, both are sums of them."""
    kept = torch.ones_like(entries, dtype=torch.bool) if threshold is None else entries > threshold
    if weights is not None:
        counted = torch.where(kept, weights, 0.0)
        return torch.stack(((counted * entries).sum(), counted.sum()))
    return torch.stack((torch.where(kept, entries, 0.0).sum(), kept.sum().to(entries.dtype)))


def logit_distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    scale: float = LOGIT_SCALE,
    threshold: float | None = LOGIT_THRESHOLD,
    processes: Processes = ALONE,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of `divergence` over the occupied voxels whose divergence is above `threshold`; None counts every voxel.

    Both logits are float [V, classes]; `weights`, float [V], are of the voxels in the mean. A scalar, 0 where no voxel
    is left (published: NaN).
    """
    return mean_of(sum_and_count(divergence(student_logits, teacher_logits, scale), threshold, weights), processes)


def mean_of(sum_count: torch.Tensor, processes: Processes) -> torch.Tensor:
    """The mean from what `sum_and_count` returned, over all processes; 0 without an entry."""
    total, count = sum_count
    return processes.mean(total / torch.where(count > 0, count, 1.0).detach(), count)


def dense_logit_distillation_loss(
    outputs: StudentOutputs,
    teacher_logits: torch.Tensor,
    batch: ScanBatch,
    scale: float = LOGIT_SCALE,
    threshold: float | None = LOGIT_THRESHOLD,
    processes: Processes = ALONE,
    weights: torch.Tensor | None = None,
    chunk: int = CHUNK_PILLARS,
) -> torch.Tensor:
    """`logit_distillation_loss` over the whole grid, as published: the teacher's logits of empty voxels are 0.

    The student's logits of empty voxels are computed for `chunk` pillars at a time, and again in the backward pass,
    so that the dense grid never exists. The teacher's logits, float [V, classes], and the weights, float [V], are of
    occupied voxels; in the mean, empty ones weigh 1.

    Raises:
        SettingsError: the student does not classify pillars.
    """
    maps, classifier = outputs.classifier_input, outputs.pillar_logits
    if maps is None or classifier is None:
        raise SettingsError("distillation.support: dense needs a student that classifies pillars; set occupied")
    result = sum_and_count(divergence(outputs.voxel_logits, teacher_logits, scale), threshold, weights)
    uniform = teacher_logits.new_zeros(teacher_logits.shape[1])

    def of_empty(features: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
        return sum_and_count(divergence(classifier(features)[empty], uniform, scale), threshold)

    for features, empty in zip(pillars_last(maps).split(chunk), empty_voxels(batch).split(chunk), strict=True):
        result = result + checkpoint(of_empty, features, empty, use_reentrant=False)
    return mean_of(result, processes)


def empty_voxels(batch: ScanBatch) -> torch.Tensor:
    """Which voxels of the grid hold no point, bool [B * R * P, height bins]."""
    radial, azimuth, heights = batch.grid_shape
    empty = torch.ones(batch.scans * radial * azimuth, heights, dtype=torch.bool, device=batch.voxels.device)
    empty[pillar_rows(batch)[batch.voxel_pillar], batch.voxels[:, 3]] = False
    return empty
