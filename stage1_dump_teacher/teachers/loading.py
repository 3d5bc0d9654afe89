"""Teachers by the name that the setting `teacher` gives."""

from pathlib import Path

import torch

from common.base.named import named_class
from common.targets.teacher import Precision, Teacher

ROOM = "stage1_dump_teacher.teachers"


def load_named_teacher(name: str, checkpoint: Path, device: torch.device, precision: Precision = "float32") -> Teacher:
    """The teacher of a checkpoint: of a file in this folder, or of a class of your own, `package.module:Class`.

    Raises:
        SettingsError: there is no such teacher, or it does not compute in this precision here.
        CheckpointError: the checkpoint does not load completely.
    """
    return named_class(name, ROOM, Teacher, "teacher").load(checkpoint, device).in_precision(precision)
