"""A teacher: what stage one dumps and what stage two asks where no store answers for it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from common.base.errors import SettingsError
from common.scans.label_map import LabelMap
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets


class Teacher(Protocol):
    """A frozen network that says something about the voxels and pillars of scans.

    Attributes:
        hash: SHA-256 of the weights that act.
        classes: how many, "unlabelled" included.
        channels: of the pillar features, by the name of each layer that it has.
    """

    @property
    def hash(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def channels(self) -> dict[str, int]: ...

    def targets(self, batch: ScanBatch, layers: Sequence[str]) -> TeacherTargets:
        """What it says about a batch, on the batch's device, with the pillar features of some layers."""


TeacherLoader = Callable[[Path, torch.device], Teacher]
"""Loads a checkpoint onto a device. The program hands it to those commands of stage two that run a teacher."""


def check_classes(teacher: Teacher, label_map: LabelMap) -> None:
    """Refuse a teacher whose classes cannot be those of the dataset.

    Raises:
        SettingsError: their numbers differ.
    """
    if teacher.classes != len(label_map.classes):
        raise SettingsError(
            f"the teacher has {teacher.classes} classes, dataset '{label_map.name}' has {len(label_map.classes)}. "
            "Choose the dataset that the teacher was trained on (setting dataset)."
        )


def layer_channels(teacher: Teacher, layers: Iterable[str]) -> dict[str, int]:
    """Channels of some of a teacher's layers, by name.

    Raises:
        SettingsError: it has no such layer.
    """
    known = teacher.channels
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise SettingsError(f"the teacher has no layer '{unknown[0]}'; choose from {', '.join(known)}")
    return {name: known[name] for name in layers}
