"""What a distillation loss is: one class in one file of this folder, or anywhere else that a setting can name."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.settings import DistillationSettings
from stage2_train_student.students.student import StudentOutputs


@dataclass(frozen=True)
class TermContext:
    """What a term is built from.

    Attributes:
        settings: of all terms.
        teacher_channels: channels of each teacher layer in the targets, by name.
        student_channels: channels of each student layer, by name.
        class_weights: float [classes].
    """

    settings: DistillationSettings
    teacher_channels: Mapping[str, int]
    student_channels: Mapping[str, int]
    class_weights: torch.Tensor


class Term(nn.Module):
    """A distillation loss, whose parameters train with the student's.

    Attributes:
        name: of its value in what a run records; of the file, for a term in this folder.
        teacher_layers: that it reads from the targets, beside the logits; those of its pairs in
            `DistillationSettings.pairs`, where it has some.
        voxel_features: whether it reads the layers' voxel features, and not only those of pillars.
        settings: of all terms; `weights.voxel_weights` and `weights.cell_weights` say by them how much the teacher's
            word counts where.
    """

    name: ClassVar[str]
    teacher_layers: ClassVar[tuple[str, ...]] = ()
    voxel_features: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, context: TermContext) -> None:
        super().__init__()
        self.settings = context.settings

    @abstractmethod
    def forward(
        self, outputs: StudentOutputs, targets: TeacherTargets, batch: ScanBatch, processes: Processes = ALONE
    ) -> dict[str, torch.Tensor]:
        """Its unweighted value, a scalar under `name`; parts of it may stand beside it as `name.part`.

        Where several processes hold a part of the batch each, the values are those of the whole.
        """
