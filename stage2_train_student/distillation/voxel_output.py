"""Output distillation of PVKD at voxels: the student's class probabilities of each voxel learn from the teacher's."""

import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.logit import mean_of
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.distillation.weights import voxel_weights
from stage2_train_student.students.student import StudentOutputs


class VoxelOutput(Term):
    """Mean of `output_divergence` over occupied voxels (Hou et al., CVPR 2022).

    Secondary sources confirm a Kullback-Leibler divergence of the outputs over all voxels and classes. Not checked
    against the paper, which was not at hand: the direction KL(student || teacher), and the temperature; it is
    `logit_scale`. The paper's mean runs over all voxels of the grid. Empty ones have equal logits in both networks, so
    they only divide by a larger number; here the mean is over occupied ones, and does not depend on how full a scan is.
    """

    name = "voxel_output"

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.scale = context.settings.logit_scale

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """`voxel_output` or, in a subclass, the mean by its own `counts`."""
        entries = output_divergence(outputs.voxel_logits, targets.logits, self.scale)
        weights = voxel_weights(self.settings, targets, batch, processes)
        counts = self.counts(batch).to(entries.dtype)
        if weights is not None:
            counts = counts * weights
        return {self.name: mean_of(torch.stack(((entries * counts).sum(), counts.sum())), processes)}

    def counts(self, batch: ScanBatch) -> torch.Tensor:
        """How often each voxel counts, [V]."""
        return torch.ones_like(batch.voxel_labels)


def output_divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Mean over classes of p_s log(p_s / p_t), the addends of KL(student || teacher), of softened probabilities.

    From logits float [V, classes], the teacher's of any precision, to float [V]; `scale`, the inverse of a temperature,
    is a factor on both before the softmax.
    """
    student = (student_logits * scale).log_softmax(dim=-1)
    teacher = (teacher_logits.to(student_logits.dtype) * scale).log_softmax(dim=-1)
    return (student.exp() * (student - teacher)).mean(dim=-1)
