"""Finding and loading the student of a finished or running experiment."""

from pathlib import Path

import torch

from common.base.config import load_settings
from common.base.errors import CheckpointError, SettingsError
from common.scans.label_map import LabelMap, load_label_map
from common.training.recorder import SETTINGS_FILE
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.experiment import new_student
from stage2_train_student.training.state import BEST_STUDENT, LAST_STUDENT

EXPORTED_STUDENT = "student.safetensors"
"""In a folder that `export` wrote, which every command takes for a run."""


def load_student(settings: ExperimentSettings, weights: Path, device: torch.device) -> tuple[Student, LabelMap]:
    """A student in eval mode from a file of its weights alone: ours, or a published checkpoint.

    Raises:
        CheckpointError: the weights do not match the settings in every name and shape.
    """
    label_map = load_label_map(settings.dataset)
    student = new_student(settings, label_map)
    what = f"{type(student).__name__} with {settings.student}"
    student.load_published(weights, what)
    return student.eval().to(device), label_map


def run_settings(folder: Path) -> ExperimentSettings:
    """Settings that a run was trained with.

    Raises:
        CheckpointError: there is no run.
        SettingsError: they are damaged; says how to have them written again.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no run here ({SETTINGS_FILE} is missing). Train one first, or check RUN.")
    try:
        if not path.read_bytes().strip():
            raise SettingsError(f"{path}: the file is empty.")
        return load_settings(ExperimentSettings, path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from error
    except SettingsError as error:
        raise SettingsError(
            f"{error.message}\nTo write the settings of this run again, resume it with those it was trained with "
            "(train --resume); others are refused."
        ) from error


def run_weights(folder: Path) -> Path:
    """The best student of a run, or its last where no validation chose a best one, or the one in an exported folder.

    Raises:
        CheckpointError: the run has not saved a student yet.
    """
    for name in (BEST_STUDENT, LAST_STUDENT, EXPORTED_STUDENT):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: no student saved yet. Let the training reach its first save.")
