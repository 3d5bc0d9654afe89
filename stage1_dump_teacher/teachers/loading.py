"""Teachers by the name that the setting `teacher` gives, and averages of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.base.errors import SettingsError
from common.base.named import named_class
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid
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


def load_teachers(
    settings: DumpSettings, checkpoints: Sequence[Path], label_map: LabelMap, grid: PolarGrid, device: torch.device
) -> Teacher:
    """The teacher that settings name, or the average that they ask for.

    Args:
        settings: say the kind of those that are not recorded predictions, their precision, and how they are averaged.
        checkpoints: of each teacher, the one whose layers are kept first.
        label_map: the classes that they answer in.
        grid: of the views that are averaged.
        device: to load them onto.

    Raises:
        SettingsError: there is no such teacher, it has other classes or does not compute in this precision here; or
            there is not one weight for each, or no network to be asked for several views.
        CheckpointError: a checkpoint does not load completely.
    """
    count, views, weights = len(checkpoints), settings.views_averaged, settings.teacher_weights
    if weights and len(weights) != count:
        raise SettingsError(
            f"{count} teachers are given, and {len(weights)} weights, of teacher_weights or of the store. "
            "Give --teacher for each, in the same order."
        )
    loaded = (load_named_teacher(settings.teacher, path, device, settings.precision) for path in checkpoints)
    teachers = [teacher.for_dataset(label_map) for teacher in loaded]
    if count == 1 and views == 1:
        return teachers[0]
    # What is recorded is the same in every view.
    seen = [1 if isinstance(teacher, RecordedTeacher) else views for teacher in teachers]
    if views > 1 and max(seen) == 1:
        raise SettingsError("views_averaged: recorded predictions are the same in every view; set it to 1")
    # The weight of one teacher alone says nothing, and is no part of what a store is.
    weights = weights if weights and count > 1 else [1.0] * count
    shares = [
        TeacherShare(weight=weight, views=own, policy=POLICY if own > 1 else None)
        for weight, own in zip(weights, seen, strict=True)
    ]
    return Average(teachers, shares, grid)
