"""Everything that a training run is at a moment, and its way to disk and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from common.base.errors import CheckpointError
from common.base.text import printable
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.processes import ALONE, Processes
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
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.parallel import draw_apart

STATE_FILE = "last.pt"
BEST_STUDENT = "student_best.pt"
LAST_STUDENT = "student_last.pt"
MAY_CHANGE = {"epochs", "steps", "loading_threads", "validate_every", "save_every", "early_stopping"}
"""Settings that a resumed run may change without becoming another experiment; `epochs` not where a schedule falls."""

OTHER_PROCESSES = "another number of processes than before, so random numbers differ from those of an uninterrupted run"


@dataclass
class TrainingState:
    """What changes while training.

    Attributes:
        student: the network.
        distillation: the terms in use, with their adapters.
        optimiser: Adam over both.
        scaler: of the loss, for float16.
        average: moving average of the student, None for none.
        epoch: epochs finished.
        step_in_epoch: steps of the optimiser finished of the epoch under way.
        step: steps of the optimiser finished in all.
        best_miou: of all validations so far, in 0..1; -1 before the first.
        validations_since_best: validations after the one that gave `best_miou`.
        validation_due: whether the epoch that ended last is still to be validated.
        training_scans: that the run trains on; a resumed run must have the same.
        targets_hash: of what the targets are made by, None without targets; a resumed run must have the same.
        parallel: student and adapters as one network that computes with other processes; None for one process alone.
    """

    student: Student
    distillation: Distillation
    optimiser: torch.optim.Adam
    scaler: torch.amp.GradScaler
    average: Student | None = None
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_miou: float = -1.0
    validations_since_best: int = 0
    validation_due: bool = False
    training_scans: ScansOfSequences = field(default_factory=dict)
    targets_hash: str | None = None
    parallel: DistributedDataParallel | None = None

    @property
    def trained(self) -> Student:
        """The student to validate, save and use: the average where there is one."""
        return self.student if self.average is None else self.average

    def save(self, folder: Path, settings: ExperimentSettings, processes: Processes = ALONE) -> None:
        """Write the state whole or not at all, and the student alone in the published layout.

        All processes call it, since each has random numbers of its own; the first one writes.
        """
        of_first, *of_others = random_states(processes)
        if not processes.first:
            return
        content = {
            "settings": settings.model_dump(mode="json"),
            "student": self.student.state_dict(),
            "distillation": self.distillation.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "progress": self.progress(),
            "random_state": of_first,
            "random_states_of_others": of_others,
            "targets_hash": self.targets_hash,
            "training_scans": self.training_scans,
        }
        flush_metrics(folder)
        save_checkpoint(folder / STATE_FILE, content)
        save_checkpoint(folder / LAST_STUDENT, published_student(self.trained))

    def progress(self) -> dict[str, Any]:
        """The counters."""
        names = ("epoch", "step_in_epoch", "step", "best_miou", "validations_since_best", "validation_due")
        return {name: getattr(self, name) for name in names}

    def restore(self, folder: Path, settings: ExperimentSettings, processes: Processes = ALONE) -> str | None:
        """Continue where `save` left off, random states included where there are as many processes as before.

        Returns:
            what is different from before, None where nothing is.

        Raises:
            CheckpointError: there is no state, it is damaged, or it belongs to another experiment.
        """
        path = folder / STATE_FILE
        content = load_checkpoint(path)
        try:
            stored = with_later_settings(ExperimentSettings, content["settings"])
            check_same_settings(path, stored, settings.model_dump(mode="json"), may_change(settings))
            check_same_scans(path, content.get("training_scans"), self.training_scans)
            check_same_targets(path, content["targets_hash"], self.targets_hash)
            load_strictly(path, self.student, content["student"], "the student")
            load_strictly(path, self.distillation, content["distillation"], "the distillation adapters")
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            if self.average is not None:
                load_strictly(path, self.average, content["average"], "the average of the student")
            for name, value in checked_progress(content["progress"], self.progress()).items():
                setattr(self, name, value)
            random_states = [content["random_state"], *content.get("random_states_of_others", [])]
            if len(random_states) != processes.count:
                draw_apart(settings.seed, self.step, processes)
                return OTHER_PROCESSES
            same_gpus = set_random_state(random_states[processes.rank])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a training state of this program ({error!r}).") from error
        return None if same_gpus else OTHER_GPUS


def may_change(settings: ExperimentSettings) -> set[str]:
    """Settings that a resumed run may change."""
    return MAY_CHANGE if settings.optimiser.schedule.kind == "constant" else MAY_CHANGE - {"epochs"}


def check_same_targets(path: Path, stored: str | None, current: str | None) -> None:
    """Refuse to continue with targets of another store or teacher.

    Raises:
        CheckpointError: they differ.
    """
    if stored != current:
        raise CheckpointError(
            f"{path}: cannot resume with targets of another store or teacher ({printable(str(stored)[:12])} in "
            f"the run, {str(current)[:12]} now). Use the run's CACHE or TEACHER, or another run folder."
        )


def published_student(student: Student) -> dict[str, torch.Tensor]:
    """The student's weights as published PolarNet checkpoints hold them: a plain, contiguous state dict on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}


def random_states(processes: Processes) -> list[dict[str, Any]]:
    """What `random_state` returns in each process, by rank."""
    own = random_state()
    of_gpus = zip(*(processes.gather(state) for state in own["cuda"]), strict=True)
    cuda = [list(states) for states in of_gpus] or [[] for _ in range(processes.count)]
    return [{"cpu": cpu, "cuda": gpus} for cpu, gpus in zip(processes.gather(own["cpu"]), cuda, strict=True)]
