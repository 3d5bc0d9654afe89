"""`evaluation.json`: what `evaluate` found about the student of a run, kept in the run's folder for comparisons."""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from common.base.errors import DataError
from common.base.files import write_json
from common.base.untrusted_json import parse_json
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.checksums import file_hash
from stage2_train_student.training.state import BEST_STUDENT

EVALUATION_FILE = "evaluation.json"
TRAINED_ON = "its mIoU there says nothing about scans that it has not seen"
REQUIRED = ("weights", "weights_sha256", "splits", "scans", "scans_sha256", "views", "seed", "miou", "iou", "points")
"""Keys without which a report does not say what was measured."""


def scans_hash(scans: Iterable[ScanId]) -> str:
    """SHA-256 over the names of scans, independent of their order."""
    return hashlib.sha256("\n".join(sorted(map(str, scans))).encode()).hexdigest()


def sequences_that_chose(
    weights: Path, settings: ExperimentSettings, evaluated_on: Collection[str], label_map: LabelMap
) -> list[str]:
    """Sequences by which a run chose these weights as its best student, and on which they are evaluated too.

    Nothing chose a run's last student. What it is `evaluated_on` are splits and sequences.
    """
    return [] if weights.name != BEST_STUDENT else shared_sequences(settings.validate_on, evaluated_on, label_map)


def shared_sequences(one: Collection[str], other: Collection[str], label_map: LabelMap) -> list[str]:
    """Sequences that are among two lists of splits and sequences, sorted."""
    return sorted(set(label_map.sequences(one)) & set(label_map.sequences(other)))


def write_evaluation(folder: Path, weights: Path, numbers: dict[str, Any]) -> Path:
    """Keep a report on a student of a run in the run's folder, in place of the one before; returns the file.

    It names the weights without their folder, so that the run may be moved.
    """
    path = folder / EVALUATION_FILE
    write_json(path, {**numbers, "weights": weights.name, "weights_sha256": file_hash(weights)})
    return path


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """The evaluation kept in a run's folder, None where there is none.

    Raises:
        DataError: it is damaged, or the student that it is about has changed since.
    """
    path = folder / EVALUATION_FILE
    if not path.is_file():
        return None
    numbers = read_report(path)
    weights = folder / Path(numbers["weights"]).name
    if weights.is_file() and file_hash(weights) != numbers["weights_sha256"]:
        raise DataError(
            f"{path}: {weights.name} has changed since it was evaluated, so these numbers are of another student. "
            f"Run evaluate --run {folder} again."
        )
    return numbers


def read_report(path: Path) -> dict[str, Any]:
    """A report of `evaluate` on scans that it names.

    Raises:
        DataError: it cannot be read, or lacks something that a comparison needs.
    """
    try:
        numbers = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Run evaluate again.") from error
    missing = [key for key in REQUIRED if key not in numbers] if isinstance(numbers, dict) else list(REQUIRED)
    if missing:
        raise DataError(f"{path}: not a report of evaluate that can be compared, it lacks {', '.join(missing)}.")
    if not isinstance(numbers["iou"], dict):
        raise DataError(f"{path}: not a report of evaluate: iou is no table by class. Run evaluate again.")
    return dict(numbers)
