"""A loss of one's own: absolute differences of a teacher's layer through an adapter and a student's map."""

import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.adapter import adapted, adapters
from stage2_train_student.distillation.term import Term, TermContext
from stage2_train_student.students.student import StudentOutputs


class AbsoluteDifference(Term):
    """Mean over all bins and channels."""

    name = "absolute"
    teacher_layers = ("height",)

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.adapters = adapters({"height": "map"}, context)

    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        difference = adapted(self.adapters, "height", targets, batch.scans) - outputs.layers["map"]
        return {"absolute": processes.mean(difference.abs().mean(), batch.scans)}
