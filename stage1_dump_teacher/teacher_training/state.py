"""A teacher under training at a moment, and its way to disk and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.base.content_hash import sealed_safetensors
from common.base.errors import CheckpointError
from common.base.files import write_atomically
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.recorder import flush_metrics
from common.training.resuming import (
    OTHER_GPUS,
    ScansOfSequences,
    check_same_scans,
    check_same_settings,
    checked_progress,
    load_strictly,
    random_state,
    set_random_state,
    with_later_settings,
)
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings
from stage1_dump_teacher.teachers.cylinder3d_network import Cylinder3D
from stage1_dump_teacher.teachers.published_weights import to_published

STATE_FILE = "last.pt"
LAST_TEACHER = "teacher_last.safetensors"
BEST_TEACHER = "teacher_best.safetensors"
MAY_CHANGE = {"epochs", "steps", "loading_threads", "validate_every", "save_every", "checkpoint_dtype"}
"""Settings that a resumed run may change; `epochs` not where a schedule falls."""
PROGRESS = ("epoch", "step_in_epoch", "step", "best_miou", "validation_due")


@dataclass
class TeacherState:
    """What changes while a teacher is trained.

    Attributes:
        teacher: the network.
        optimiser: Adam over it.
        epoch: epochs finished.
        step_in_epoch: steps finished of the epoch under way.
        step: steps finished in all.
        best_miou: of all validations so far, in 0..1; -1 before the first.
        validation_due: whether the epoch that ended last is still to be validated.
        training_scans: that the run trains on; a resumed run must have the same.
    """

    teacher: Cylinder3D
    optimiser: torch.optim.Adam
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_miou: float = -1.0
    validation_due: bool = False
    training_scans: ScansOfSequences = field(default_factory=dict)

    def save(self, folder: Path, settings: TeacherTrainingSettings) -> None:
        """Write the state whole or not at all, and the teacher alone in the published layout."""
        content = {
            "settings": settings.model_dump(mode="json"),
            "teacher": self.teacher.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progress": self.progress(),
            "random_state": random_state(),
            "training_scans": self.training_scans,
        }
        flush_metrics(folder)
        save_checkpoint(folder / STATE_FILE, content)
        save_teacher(folder / LAST_TEACHER, self.teacher, settings)

    def progress(self) -> dict[str, Any]:
        """The counters."""
        return {name: getattr(self, name) for name in PROGRESS}

    def restore(self, folder: Path, settings: TeacherTrainingSettings) -> str | None:
        """Continue where `save` left off, random states included.

        Returns:
            what is different from before, None where nothing is.

        Raises:
            CheckpointError: there is no state, it is damaged, or it belongs to other settings.
        """
        path = folder / STATE_FILE
        content = load_checkpoint(path)
        constant = settings.schedule.kind == "constant"
        may_change = MAY_CHANGE if constant else MAY_CHANGE - {"epochs"}
        try:
            stored = with_later_settings(TeacherTrainingSettings, content["settings"])
            check_same_settings(path, stored, settings.model_dump(mode="json"), may_change)
            check_same_scans(path, content.get("training_scans"), self.training_scans)
            load_strictly(path, self.teacher, content["teacher"], "the teacher")
            self.optimiser.load_state_dict(content["optimiser"])
            for name, value in checked_progress(content["progress"], self.progress()).items():
                setattr(self, name, value)
            same_gpus = set_random_state(content["random_state"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a teacher's training state ({error!r}).") from error
        return None if same_gpus else OTHER_GPUS


def save_teacher(path: Path, teacher: Cylinder3D, settings: TeacherTrainingSettings) -> None:
    """Write the weights in the published layout, as safetensors, whole or not at all.

    Vectors stay float32: batch norm's running variances can be larger than float16 reaches, and they weigh little.
    """
    dtype = {"float32": torch.float32, "float16": torch.float16}[settings.checkpoint_dtype]
    weights = {name: w.to(dtype) if w.ndim > 1 else w for name, w in to_published(teacher).items()}
    write_atomically(path, sealed_safetensors(weights))
