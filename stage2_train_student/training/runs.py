"""What a run's folder holds: its settings, its student, and a note once it has trained as long as its settings ask."""

from pathlib import Path
from typing import Any

import torch

from common.base.checked_json import with_checksum, without_checksum
from common.base.config import Settings, in_one_line, load_settings
from common.base.errors import CheckpointError, SettingsError
from common.base.files import write_json
from common.base.untrusted_json import parse_json
from common.scans.label_map import LabelMap, load_label_map
from common.training.recorder import SETTINGS_FILE
from common.training.resuming import changed_settings, with_later_settings
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.checksums import check_sums
from stage2_train_student.training.experiment import new_student
from stage2_train_student.training.state import BEST_STUDENT, LAST_STUDENT, StudentState

EXPORTED_STUDENT = "student.safetensors"
"""In a folder that `export` wrote, which every command takes for a run."""

FINISHED_FILE = "finished.json"
IGNORED_SETTINGS = {"loading_threads", "cuda_graphs", "save_every"}
"""Settings that change nothing about the student that a run ends with."""


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
        CheckpointError: there is no run, or a file of an exported folder is missing or has changed.
        SettingsError: they are damaged; says how to have them written again.
    """
    path = folder / SETTINGS_FILE
    check_sums(folder, (".yaml",))
    if not path.is_file():
        raise CheckpointError(f"{folder}: no run here ({SETTINGS_FILE} is missing). Train one first, or check --run.")
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


class FinishedRun(Settings):
    """What the note holds: the run's settings, and how far it came.

    Attributes:
        best_miou: of all validations, in 0..1; -1 without any.
        targets_hash: of what the targets are made by, null without targets.
    """

    settings: dict[str, Any]
    epoch: int
    step: int
    best_miou: float
    targets_hash: str | None

    def matches(self, settings: ExperimentSettings) -> bool:
        """Whether the run trained with these settings, to the end that they ask for."""
        stored = with_later_settings(ExperimentSettings, self.settings)
        return not changed_settings(stored, settings.model_dump(mode="json"), IGNORED_SETTINGS)


def write_finished(folder: Path, settings: ExperimentSettings, state: StudentState) -> None:
    """Note that the run in `folder` has ended as its settings ask."""
    note = FinishedRun(
        settings=settings.model_dump(mode="json"),
        epoch=state.epoch,
        step=state.step,
        best_miou=state.best_miou,
        targets_hash=state.targets_hash,
    )
    write_json(folder / FINISHED_FILE, with_checksum(note.model_dump(mode="json")))


def read_finished(folder: Path) -> FinishedRun | None:
    """The note of a run, None where it has not ended.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FINISHED_FILE
    if not path.is_file():
        return None
    try:
        return FinishedRun.model_validate(without_checksum(parse_json(path.read_bytes())))
    except (AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a note of a finished run ({in_one_line(error)}). Remove it to train the run on."
        ) from error
