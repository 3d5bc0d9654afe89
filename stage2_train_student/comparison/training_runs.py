"""What a run folder tells about a training run, without loading a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.base.errors import DataError
from common.base.untrusted_json import parse_json
from common.scans.label_map import LabelMap
from common.training.recorder import ENVIRONMENT_FILE, METRICS_FILE, SETTINGS_FILE, read_metrics
from stage2_train_student.evaluation.evaluation_file import read_evaluation, sequences_that_chose
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import run_settings
from stage2_train_student.training.seen_data import SeenData, read_seen


@dataclass(frozen=True)
class TrainingRun:
    """One run folder.

    Records (of each step, of each validation, and of time and memory, which older versions lack) are in order.

    Attributes:
        environment: of `environment.json`, empty where that is missing.
        evaluation: of `evaluation.json`, None where the run was not evaluated, or the evaluation cannot be used.
        evaluation_problem: why it cannot be used, None where it can.
        seen: of `seen.json`, None for a run of an older version.
    """

    folder: Path
    settings: ExperimentSettings
    environment: dict[str, Any]
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    evaluation_problem: DataError | None = None
    seen: SeenData | None = None

    @property
    def targets_hash(self) -> str | None:
        """Of what made the targets; None without targets, or where it was not recorded."""
        if self.costs:
            return self.costs[-1].get("targets_hash")
        return self.seen.targets_hash if self.seen else None

    @property
    def last_step(self) -> int:
        """0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def finished(self) -> bool:
        """Whether the run reached the steps or epochs of its settings, or its early stop."""
        settings, mious = self.settings, [record["miou"] for record in self.validations]
        since_best = len(mious) - 1 - mious.index(max(mious)) if mious else 0
        if settings.steps is not None and self.last_step >= settings.steps:
            return True
        if settings.early_stopping is not None and since_best >= settings.early_stopping:
            return True
        # Both count the epochs finished; a run of an older version has no costs, and not every run validates.
        return max((record["epoch"] for record in [*self.costs, *self.validations]), default=0) >= settings.epochs

    def seconds_per_step(self) -> float | None:
        """Median over the steps, validation and saving left out; None without a step."""
        return float(np.median([record["seconds"] for record in self.steps])) if self.steps else None

    def peak_memory(self) -> float | None:
        """Bytes; None where it was not recorded."""
        return max((record["peak_memory_bytes"] for record in self.costs), default=None)

    def best_validation(self) -> dict[str, Any] | None:
        """Record of the validation of the highest mIoU, the one that chose the best student; None without any."""
        return max(self.validations, key=lambda record: float(record["miou"]), default=None)

    def evaluated(self) -> dict[str, Any] | None:
        """The report of `evaluate`; None where the run was not evaluated, or no point had a label."""
        return None if self.evaluation is None or self.evaluation["miou"] is None else self.evaluation

    def chosen_on(self, label_map: LabelMap) -> list[str]:
        """Sequences that chose the student and that it was evaluated on as well."""
        numbers = self.evaluation
        if numbers is None:
            return []
        return sequences_that_chose(Path(numbers["weights"]), self.settings, numbers["splits"], label_map)


def find_runs(folders: list[Path]) -> list[Path]:
    """Run folders among some folders and below them, in order, each once.

    Raises:
        DataError: a folder is missing, or neither is nor holds a run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Name folders of training runs, or folders that hold some.")
        below = (path.parent for path in folder.rglob(METRICS_FILE))
        here = [folder] if is_run(folder) else sorted(filter(is_run, below))
        if not here:
            raise DataError(
                f"{folder}: no training run here or below it (a run holds {SETTINGS_FILE} and {METRICS_FILE}). "
                "Train one first, or check the path."
            )
        for run in here:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Whether a folder holds a training run that has begun."""
    return (folder / SETTINGS_FILE).is_file() and (folder / METRICS_FILE).is_file()


def read_run(folder: Path) -> TrainingRun:
    """Read a run folder.

    Raises:
        DataError: its records are damaged.
        SettingsError: its settings cannot be used.
    """
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "run": []}
    for record in read_metrics(folder):
        kinds.setdefault(record["kind"], []).append(record)
    evaluation, problem = None, None
    try:
        evaluation = read_evaluation(folder)
    except DataError as error:
        problem = error
    return TrainingRun(
        folder=folder,
        settings=run_settings(folder),
        environment=read_environment(folder),
        steps=kinds["train"],
        validations=kinds["validation"],
        costs=kinds["run"],
        evaluation=evaluation,
        evaluation_problem=problem,
        seen=read_seen(folder),
    )


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run was made with, empty where it does not say.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / ENVIRONMENT_FILE
    if not path.is_file():
        return {}
    try:
        return dict(parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path}: not what a training run writes there ({error}). Remove it to compare without."
        ) from error
