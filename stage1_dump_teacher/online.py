"""The teacher in the loop: the reference that cached targets are compared with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from common.scan_batch import ScanBatch
from common.teacher_targets import TeacherTargets
from stage1_dump_teacher.cylinder3d import FEATURE_LAYERS, Cylinder3D
from stage1_dump_teacher.pillar_targets import teacher_targets
from stage1_dump_teacher.published_weights import load_teacher


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen teacher that answers for any batch.

    Attributes:
        model: the teacher.
        layers: names of the layers it returns.
        hash: of its acting weights.
    """

    model: Cylinder3D
    layers: tuple[str, ...]
    hash: str

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each layer."""
        return {name: FEATURE_LAYERS[name] * self.model.widths.base for name in self.layers}

    def targets(self, batch: ScanBatch) -> TeacherTargets:
        """Targets of a batch on the teacher's device."""
        return teacher_targets(self.model, batch, self.layers)


def online_teacher(checkpoint: Path, device: torch.device, layers: list[str]) -> OnlineTeacher:
    """Load a published-layout checkpoint for use in the training loop.

    Raises:
        CheckpointError: it does not load completely.
    """
    teacher = load_teacher(checkpoint, device)
    return OnlineTeacher(teacher.model, tuple(layers), teacher.hash)
