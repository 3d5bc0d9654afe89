"""What changes while a student is trained, and what of it may be another when a run goes on."""

from typing import NamedTuple

from common.training.state import TrainingState
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student

BEST_STUDENT = "student_best.pt"
LAST_STUDENT = "student_last.pt"
MAY_CHANGE = {"epochs", "steps", "loading_threads", "cuda_graphs", "validate_every", "save_every", "early_stopping"}
"""Settings that a resumed run may change without becoming another experiment; `epochs` not where a schedule falls."""


class StudentNetworks(NamedTuple):
    """What is trained.

    Attributes:
        student: the network.
        distillation: the terms in use, with their adapters.
        average: moving average of the student, None for none.
    """

    student: Student
    distillation: Distillation
    average: Student | None = None

    @property
    def trained(self) -> Student:
        """The student to validate, save and use: the average where there is one."""
        return self.student if self.average is None else self.average


StudentState = TrainingState[StudentNetworks]


def may_change(settings: ExperimentSettings) -> set[str]:
    """Settings that a resumed run may change."""
    return MAY_CHANGE if settings.optimiser.schedule.kind == "constant" else MAY_CHANGE - {"epochs"}
