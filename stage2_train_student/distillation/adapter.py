"""From a teacher layer's channels to a student layer's."""

import torch
from torch import nn

from common.targets.teacher_targets import TeacherTargets
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.students.pillar_maps import map_layout
from stage2_train_student.students.replay import Replay


class Adapter(nn.Module):
    """Maps a teacher layer to a student layer's channels: batch norm, 3x3 convolution, ReLU, batch norm.

    Keys and shapes are those of the published `trans_list.<i>.trans_dim`.

    Attributes:
        student_layer: whose channels and size its output has.
    """

    def __init__(self, teacher_channels: int, student_channels: int, student_layer: str = "") -> None:
        super().__init__()
        self.student_layer, self.teacher_channels, self.replay = student_layer, teacher_channels, Replay()
        self.conv = nn.Sequential(
            nn.BatchNorm2d(teacher_channels),
            nn.Conv2d(teacher_channels, student_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(student_channels),
        )

    def forward(self, teacher_map: torch.Tensor) -> torch.Tensor:
        """float [B, teacher channels, R, P] to [B, student channels, R, P]."""
        adapted: torch.Tensor = self.replay(self.conv, in_layout(teacher_map))
        return adapted

    def capture(self, size: torch.Size) -> None:
        """On a GPU, replay it for student maps of a size from here on, see `students.replay`."""
        scans, _, radial, azimuth = size
        maps = torch.zeros(scans, self.teacher_channels, radial, azimuth, device=next(self.parameters()).device)
        self.replay.capture(self.conv.train(), in_layout(maps))


def in_layout(maps: torch.Tensor) -> torch.Tensor:
    """Maps in the memory layout that suits their device."""
    return maps.contiguous(memory_format=map_layout(maps.device))


def adapted(adapters: nn.ModuleDict, name: str, targets: TeacherTargets, scans: int) -> torch.Tensor:
    """A teacher layer of a batch of `scans` as a map through its adapter, float [scans, student channels, R, P]."""
    result: torch.Tensor = adapters[name](targets.layers[name].dense(scans).float())
    return result


def adapters(pairs: dict[str, str], context: TermContext) -> nn.ModuleDict:
    """An adapter for each teacher layer, to the channels of the student layer beside it."""
    return nn.ModuleDict(
        {
            teacher: Adapter(context.teacher_channels[teacher], context.student_channels[student], student)
            for teacher, student in pairs.items()
        }
    )
