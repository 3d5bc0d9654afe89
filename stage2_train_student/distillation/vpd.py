"""Voxel-to-pillar distillation (VPD): the student's maps learn from the teacher's features, gathered into pillars."""

import torch
from torch.nn import functional

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.adapter import adapters, compared
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.distillation.weights import cell_weights
from stage2_train_student.students.student import StudentOutputs


class VoxelToPillar(Term):
    """Weighted sum over the pairs of layers of the mean squared error between adapted teacher map and student map."""

    name = "vpd"

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.pairs = context.settings.pairs_of(self.name)
        self.adapters = adapters({pair.teacher: pair.student for pair in self.pairs}, context)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """`vpd`, and its addends before their weights, `vpd.down1c`, ..."""
        parts, weighted = {}, []
        for pair in self.pairs:
            adapted, student = compared(self.adapters, pair, outputs, targets, batch.scans)
            weights = cell_weights(self.settings, targets, batch, (student.shape[2], student.shape[3]), processes)
            error = processes.mean(voxel_to_pillar_loss(adapted, student, weights), batch.scans)
            parts[f"vpd.{pair.teacher}"] = error
            weighted.append(pair.weight * error)
        return {**parts, "vpd": torch.stack(weighted).sum()}


def voxel_to_pillar_loss(
    adapted: torch.Tensor, student: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error between two maps [B, C, R, P], over all scans, channels and bins (VPD).

    With weights [B, 1, R, P] of mean 1, each squared error counts as much as its bin weighs.
    """
    if adapted.shape != student.shape:
        raise SettingsError(
            f"the teacher's layer is {list(adapted.shape)} and the student's {list(student.shape)} (scans, channels, "
            "radial and azimuth bins); distillation needs a grid whose radial and azimuth sizes divide by 8"
        )
    if weights is not None:
        return (weights * (student - adapted).square()).mean()
    return functional.mse_loss(student, adapted)
