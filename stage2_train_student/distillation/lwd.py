"""Label-weight distillation (LWD): the layer before the classifier, weighted by the classes that a pillar holds."""

import torch

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.adapter import adapters, compared
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.distillation.weights import cell_weights
from stage2_train_student.students.pillar_maps import pillar_rows, pillars_last
from stage2_train_student.students.student import StudentOutputs

LABEL_WEIGHT_DIVISOR = 50.0


class LabelWeight(Term):
    """`label_weight_loss` between the last layers of teacher and student, or its weighted sum over several pairs."""

    name = "lwd"
    class_weights: torch.Tensor

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.pairs = context.settings.pairs_of(self.name)
        self.adapters = adapters({pair.teacher: pair.student for pair in self.pairs}, context)
        self.register_buffer("class_weights", context.class_weights, persistent=False)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """`lwd`."""
        losses = []
        for pair in self.pairs:
            adapted, student = compared(self.adapters, pair, outputs, targets, batch.scans)
            shape = (student.shape[2], student.shape[3])
            if shape != batch.grid_shape[:2]:
                raise SettingsError(
                    f"distillation.pairs: lwd weighs the pillars of the grid, {pair.teacher} and {pair.student} have "
                    f"others ({shape[0]}x{shape[1]}); pair layers of the grid's resolution"
                )
            weights = cell_weights(self.settings, targets, batch, shape, processes)
            loss = label_weight_loss(adapted, student, batch, self.class_weights, processes, weights)
            losses.append(pair.weight * loss)
        return {"lwd": torch.stack(losses).sum()}


def label_weight_loss(
    adapted: torch.Tensor,
    student: torch.Tensor,
    batch: ScanBatch,
    class_weights: torch.Tensor,
    processes: Processes = ALONE,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Label-weight distillation: sqrt( sum over bins of W * sum_c (adapted - student)^2 / (B R P) ).

    W of a pillar is the sum of class_weight / 50 over its labelled voxels, so bins without any weigh nothing and only
    occupied pillars are read. The published script pairs a 240x180 layer with a 480x360 weight and cannot run; the
    layer here is the one before the classifier, where the paper's figure 1 draws it.

    Args:
        adapted: float [B, C, R, P], the teacher's layer through its adapter, at the grid's resolution.
        student: float [B, C, R, P].
        batch: the batch, for its pillars and voxel labels.
        class_weights: float [classes].
        processes: that hold a part of the batch each.
        weights: float [B, 1, R, P], factors on W, `weights.cell_weights`; None for 1.

    Returns:
        a scalar; 0 with a zero gradient where nothing is labelled or the maps agree.
    """
    rows = pillar_rows(batch)
    squared = (pillars_last(adapted).index_select(0, rows) - pillars_last(student).index_select(0, rows)).square()
    weight = pillar_label_weights(batch, class_weights.to(squared.dtype))
    if weights is not None:
        weight = weight * weights.flatten().index_select(0, rows)
    scans, _, radial, azimuth = student.shape
    mean = (weight * squared.sum(dim=1)).sum() / max(scans * radial * azimuth, 1)
    return safe_sqrt(processes.mean(mean, scans))


def pillar_label_weights(batch: ScanBatch, class_weights: torch.Tensor) -> torch.Tensor:
    """Sum of class_weight / 50 over the labelled voxels of each occupied pillar, float [pillars]."""
    of_voxel = class_weights[batch.voxel_labels] / LABEL_WEIGHT_DIVISOR * (batch.voxel_labels != 0)
    return of_voxel.new_zeros(len(batch.pillars)).index_add_(0, batch.voxel_pillar, of_voxel)


def safe_sqrt(value: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0 is 0, where the derivative itself is infinite."""
    positive = value > 0
    return torch.where(positive, torch.where(positive, value, torch.ones_like(value)).sqrt(), 0.0 * value)
