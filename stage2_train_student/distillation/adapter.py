"""From a teacher layer's channels to a student layer's."""

import torch
from torch import nn

from common.targets.teacher_targets import TeacherTargets
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.students.pillar_maps import map_layout


class Adapter(nn.Module):
    """Maps a teacher layer to a student layer's channels: batch norm, 3x3 convolution, ReLU, batch norm.

    Keys and shapes are those of the published `trans_list.<i>.trans_dim`.
    """

    def __init__(self, teacher_channels: int, student_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.BatchNorm2d(teacher_channels),
            nn.Conv2d(teacher_channels, student_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(student_channels),
        )

    def forward(self, teacher_map: torch.Tensor) -> torch.Tensor:
        """float [B, teacher channels, R, P] to [B, student channels, R, P]."""
        return self.conv(teacher_map.contiguous(memory_format=map_layout(teacher_map.device)))


def adapted(adapters: nn.ModuleDict, name: str, targets: TeacherTargets, scans: int) -> torch.Tensor:
    """A teacher layer of a batch of `scans` as a map through its adapter, float [scans, student channels, R, P]."""
    result: torch.Tensor = adapters[name](targets.layers[name].dense(scans).float())
    return result


def adapters(pairs: dict[str, str], context: TermContext) -> nn.ModuleDict:
    """An adapter for each teacher layer, to the channels of the student layer beside it."""
    return nn.ModuleDict(
        {
            teacher: Adapter(context.teacher_channels[teacher], context.student_channels[student])
            for teacher, student in pairs.items()
        }
    )
