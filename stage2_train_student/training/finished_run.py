"""The note that a run leaves once it has trained as long as its settings ask: known without loading any weights."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.base.checked_json import with_checksum, without_checksum
from common.base.config import Settings
from common.base.errors import CheckpointError
from common.base.files import write_json
from common.base.untrusted_json import parse_json
from common.training.resuming import changed_settings, with_later_settings
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.state import StudentState

FINISHED_FILE = "finished.json"
IGNORED_SETTINGS = {"loading_threads", "cuda_graphs", "save_every"}
"""Settings that change nothing about the student that a run ends with."""


class FinishedRun(Settings):
    """What the note holds.

    Attributes:
        settings: of the run, as they go into JSON.
        epoch: epochs finished.
        step: steps of the optimiser finished in all.
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


def remove_finished(folder: Path) -> None:
    """Remove the note: the run goes on, with other settings perhaps."""
    (folder / FINISHED_FILE).unlink(missing_ok=True)


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
    except (AttributeError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: not a note of a finished run ({error}). Remove it to train the run on."
        ) from error
