"""Teachers by the name that the setting `teacher` gives, and averages of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.base.errors import SettingsError
from common.base.named import named_class
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid
from common.targets.store import StoreIdentity
from common.targets.teacher import Precision, Teacher, TeacherShare
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.averaged import POLICY, Average
from stage1_dump_teacher.teachers.recorded import DESCRIPTION, RecordedTeacher

ROOM = "stage1_dump_teacher.teachers"


def load_named_teacher(name: str, checkpoint: Path, device: torch.device, precision: Precision = "float32") -> Teacher:
    """The teacher of a checkpoint: of a file in this folder, or of a class of your own, `package.module:Class`.

    A folder holds recorded predictions, whatever the name, unless it is what a class of your own loads.

    Raises:
        SettingsError: there is no such teacher, or it does not compute in this precision here.
        CheckpointError: the checkpoint does not load completely.
    """
    recorded = checkpoint.is_dir() and (":" not in name or (checkpoint / DESCRIPTION).is_file())
    kind = RecordedTeacher if recorded else named_class(name, ROOM, Teacher, "teacher")
    return kind.load(checkpoint, device).in_precision(precision)


@dataclass(frozen=True)
class TeacherChoice:
    """Which teachers answer, and how their answers become one.

    Attributes:
        kind: of those that are not recorded predictions.
        checkpoints: of each, the one whose layers are kept first.
        label_map: the classes that they answer in.
        grid: that they work on.
        views: of each scan, over which their answers are averaged.
        weights: of the teachers; none for equal ones.
    """

    kind: str
    checkpoints: Sequence[Path]
    label_map: LabelMap
    grid: PolarGrid
    views: int
    weights: Sequence[float]

    @classmethod
    def of_dump(cls, settings: DumpSettings, checkpoints: Sequence[Path], label_map: LabelMap) -> "TeacherChoice":
        """As the settings of a dump say."""
        averaging = settings.views_averaged, settings.teacher_weights
        return cls(settings.teacher, checkpoints, label_map, settings.grid.grid(), *averaging)

    @classmethod
    def of_store(
        cls, identity: StoreIdentity, kind: str, checkpoints: Sequence[Path], label_map: LabelMap
    ) -> "TeacherChoice":
        """As a store says that it was made."""
        shares = identity.averaged.values()
        views = max((share.views for share in shares), default=1)
        weights = [share.weight for share in shares] if len(shares) > 1 else []
        return cls(kind, checkpoints, label_map, identity.polar_grid, views, weights)

    def load(self, device: torch.device, precision: Precision = "float32") -> Teacher:
        """The teacher, or the average of all.

        Raises:
            SettingsError: there is no such teacher, it has other classes or does not compute in this precision here;
                or there is not one weight for each, or no network to be asked for several views.
            CheckpointError: a checkpoint does not load completely.
        """
        count = len(self.checkpoints)
        if self.weights and len(self.weights) != count:
            raise SettingsError(
                f"{count} teachers are given, and {len(self.weights)} weights, of teacher_weights or of the store. "
                "Give --teacher for each, in the same order."
            )
        teachers = [
            load_named_teacher(self.kind, checkpoint, device, precision).for_dataset(self.label_map)
            for checkpoint in self.checkpoints
        ]
        if count == 1 and self.views == 1:
            return teachers[0]
        # What is recorded is the same in every view.
        views = [1 if isinstance(teacher, RecordedTeacher) else self.views for teacher in teachers]
        if self.views > 1 and max(views) == 1:
            raise SettingsError("views_averaged: recorded predictions are the same in every view; set it to 1")
        # The weight of one teacher alone says nothing, and is no part of what a store is.
        weights = self.weights if self.weights and count > 1 else [1.0] * count
        shares = [
            TeacherShare(weight=weight, views=own, policy=POLICY if own > 1 else None)
            for weight, own in zip(weights, views, strict=True)
        ]
        return Average(teachers, shares, self.grid)
