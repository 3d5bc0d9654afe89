"""What changes while a teacher is trained, and what of it may be another when a run goes on."""

from pathlib import Path
from typing import NamedTuple

import torch

from common.base.content_hash import sealed_safetensors
from common.base.files import write_atomically
from common.networks.cylinder3d import Cylinder3D
from common.networks.published_weights import to_published
from common.training.state import TrainingState
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings

LAST_TEACHER = "teacher_last.safetensors"
BEST_TEACHER = "teacher_best.safetensors"
MAY_CHANGE = {
    "epochs",
    "steps",
    "loading_threads",
    "validate_every",
    "save_every",
    "early_stopping",
    "checkpoint_dtype",
}
"""Settings that a resumed run may change; `epochs` not where a schedule falls."""


class TeacherNetworks(NamedTuple):
    """What is trained."""

    teacher: Cylinder3D


TeacherState = TrainingState[TeacherNetworks]


def may_change(settings: TeacherTrainingSettings) -> set[str]:
    """Settings that a resumed run may change."""
    return MAY_CHANGE if settings.schedule.kind == "constant" else MAY_CHANGE - {"epochs"}


def save_teacher(path: Path, teacher: Cylinder3D, settings: TeacherTrainingSettings) -> None:
    """Write the weights in the published layout, as safetensors, whole or not at all.

    Vectors stay float32: batch norm's running variances can be larger than float16 reaches, and they weigh little.
    """
    dtype = {"float32": torch.float32, "float16": torch.float16}[settings.checkpoint_dtype]
    weights = {name: w.to(dtype) if w.ndim > 1 else w for name, w in to_published(teacher).items()}
    write_atomically(path, sealed_safetensors(weights))
