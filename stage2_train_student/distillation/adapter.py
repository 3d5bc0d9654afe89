"""From a teacher layer's channels to a student layer's."""

import torch
from torch import nn
from torch.nn import functional

from common.base.errors import SettingsError
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.targets.transport import merged
from stage2_train_student.distillation.settings import LayerPair
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.students.pillar_maps import in_layout
from stage2_train_student.students.replay import Replay
from stage2_train_student.students.student import StudentOutputs


class Adapter(nn.Module):
    """Maps a teacher layer to the channels of `student_layer`: batch norm, 3x3 convolution, ReLU, batch norm.

    Keys and shapes are those of the published `trans_list.<i>.trans_dim`.
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


def adapted(adapters: nn.ModuleDict, name: str, targets: TeacherTargets, scans: int) -> torch.Tensor:
    """A teacher layer of a batch of `scans` as a map through its adapter, float [scans, student channels, R, P]."""
    result: torch.Tensor = adapters[name](targets.layers[name].dense(scans).float())
    return result


def compared(
    adapters: nn.ModuleDict, pair: LayerPair, outputs: StudentOutputs, targets: TeacherTargets, scans: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A teacher layer through its adapter and the student layer that learns from it, float [scans, C, R, P] both.

    Raises:
        SettingsError: their resolutions cannot be brought together, see `same_size`.
    """
    layer, student = same_size(pair, targets.layers[pair.teacher], outputs.layers[pair.student])
    return adapters[pair.teacher](layer.dense(scans).float()), student


def same_size(pair: LayerPair, layer: PillarFeatures, student: torch.Tensor) -> tuple[PillarFeatures, torch.Tensor]:
    """The teacher's layer and the student's, float [B, C, R, P], of a pair at the coarser resolution of the two.

    Of the teacher's pillars in a coarser one each channel's maximum stays, as in the reduction to pillars; of a
    student's map, which has a value everywhere, the mean.

    Raises:
        SettingsError: one is not finer by a whole factor along both axes.
    """
    theirs, own = layer.shape, (student.shape[2], student.shape[3])
    if theirs == own:
        return layer, student
    if not (theirs[0] % own[0] or theirs[1] % own[1]):
        factors = torch.tensor([1, theirs[0] // own[0], theirs[1] // own[1]], device=layer.pillars.device)
        pillars = torch.div(layer.pillars, factors, rounding_mode="floor")
        return PillarFeatures(*merged(pillars, layer.features, own), own), student
    if not (own[0] % theirs[0] or own[1] % theirs[1]):
        return layer, functional.avg_pool2d(student, (own[0] // theirs[0], own[1] // theirs[1]))
    raise SettingsError(
        f"distillation.pairs: the teacher's layer {pair.teacher} has {theirs[0]}x{theirs[1]} radial and azimuth bins, "
        f"the student's {pair.student} {own[0]}x{own[1]}; neither is finer by a whole factor along both, so they "
        "cannot be compared. Pair other layers, or choose a grid whose radial and azimuth sizes divide by 16"
    )


def adapters(pairs: dict[str, str], context: TermContext) -> nn.ModuleDict:
    """An adapter for each teacher layer, to the channels of the student layer beside it.

    Raises:
        SettingsError: the student has no such layer; says which it has.
    """
    found, channels = nn.ModuleDict(), context.student_channels
    for teacher, student in pairs.items():
        if student not in channels:
            raise SettingsError(
                f"the student has no layer {student} to distil into (it has: {', '.join(channels) or 'none'}). Pair "
                "others (distillation.pairs), or set the weight of the term to 0; the logit term needs no layer"
            )
        found[teacher] = Adapter(context.teacher_channels[teacher], channels[student], student)
    return found
