"""What changes while a student is trained: its networks, their moving average, and their replay from CUDA graphs."""

import copy
from typing import NamedTuple

import torch

from common.training.processes import Processes
from common.training.state import TrainingState
from common.training.task import loop_may_change
from stage2_train_student.distillation.adapter import Adapter
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.precision import autocast

BEST_STUDENT = "student_best.pt"
LAST_STUDENT = "student_last.pt"


class StudentNetworks(NamedTuple):
    """What is trained: a student, the terms in use with their adapters, and a moving average of the student, if any."""

    student: Student
    distillation: Distillation
    average: Student | None = None

    @property
    def trained(self) -> Student:
        """The student to validate, save and use: the average where there is one."""
        return self.student if self.average is None else self.average


StudentState = TrainingState[StudentNetworks]


def may_change(settings: ExperimentSettings) -> set[str]:
    """Settings that a resumed run may change without becoming another experiment."""
    return loop_may_change(settings.optimiser.schedule) | {"cuda_graphs"}


def averaged_copy(student: Student) -> Student:
    """A student that starts as a copy and is changed by `update_average` only."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def decay_at(step: int, decay: float) -> float:
    """Decay after `step` steps: smaller at first, so that the random start is soon forgotten.

    min(decay, (1 + step) / (10 + step)), as in TensorFlow's `ExponentialMovingAverage`.
    """
    return min(decay, (1.0 + step) / (10.0 + step))


@torch.no_grad()
def update_average(average: Student, student: Student, decay: float) -> None:
    """average <- decay * average + (1 - decay) * student, in place.

    Running statistics of batch norm are averaged too, since they belong to the weights; counters are copied.
    """
    pairs = list(zip(average.state_dict().values(), student.state_dict().values(), strict=True))
    numbers = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in numbers], [new for _, new in numbers], 1.0 - decay)
    for kept, counter in pairs:
        if not kept.is_floating_point():
            kept.copy_(counter)


def replays(settings: ExperimentSettings, processes: Processes) -> bool:
    """Whether networks are replayed: on one GPU, with one batch a step, where they are not compiled."""
    alone = processes.count == 1 and settings.optimiser.accumulate == 1
    return settings.cuda_graphs and processes.device.type == "cuda" and alone and not settings.compile


def capture(networks: StudentNetworks, settings: ExperimentSettings) -> None:
    """Prepare the networks to be replayed. Nothing else may use the GPU meanwhile."""
    student, distillation = networks.student.train(), networks.distillation.train()
    # A graph keeps its own conversions of the weights: those kept by autocast would be gone after the capture.
    with autocast(settings.precision, next(student.parameters()).device, cached=False):
        sizes = student.capture(settings.batch_size, settings.grid.shape)
        for module in distillation.modules():
            if isinstance(module, Adapter) and module.student_layer in sizes:
                module.capture(sizes[module.student_layer])
