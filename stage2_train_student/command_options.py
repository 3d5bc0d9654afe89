"""Options that several commands of stage two share, and what they name."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch

from common.base.command_options import Decorator, gathered, path_type
from common.base.config import load_settings
from common.base.config_files import find_config, known_configs
from common.base.errors import SettingsError
from common.scans.label_map import LabelMap
from common.targets.teacher import Teacher, TeacherLoader
from common.training.predictor import PredictionPlan, Predictor, VoxelLogits
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import load_student, run_settings, run_weights

experiment_option = click.option(
    "--experiment",
    default="full",
    help="Name of a file in configs/experiments/ (baseline, vpd, lwd, logit, full), or a path to one.",
)
file_option = click.option(
    "--file-option",
    "file_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="How files are read, as in `options` of a dataset of one's own sensor, such as reflectance=null; repeatable.",
)
online_teacher_option = click.option("--teacher", type=path_type, help="Teacher checkpoint, for targets=online.")


class Model(NamedTuple):
    """A student or a teacher, ready to predict: its weights, the settings of its experiment, its classes, itself."""

    path: Path
    settings: ExperimentSettings
    label_map: LabelMap
    logits: VoxelLogits

    def predictor(self, device: torch.device, plan: PredictionPlan) -> Predictor:
        """The model as a predictor, on the grid of its settings."""
        return Predictor(self.logits, self.settings.grid.grid(), device, plan)


@dataclass(frozen=True)
class Subject:
    """What a command is about: a run, weights with an experiment that fits them, or an experiment alone."""

    run_folder: Path | None
    weights: Path | None
    experiment: str | None
    overrides: tuple[str, ...]

    @property
    def names_student(self) -> bool:
        """Whether a student is named: by a run or by its weights."""
        return self.run_folder is not None or self.weights is not None

    def settings(self) -> ExperimentSettings:
        """Settings of the run, or of the experiment with overrides.

        Raises:
            SettingsError: neither is named, or both, or those of a run are to be changed.
        """
        if self.run_folder is not None:
            if self.experiment is not None:
                raise SettingsError("--run and --experiment both name settings; a run has those it was trained with")
            if self.overrides:
                raise SettingsError("--set changes the settings of --experiment; a run keeps those it was trained with")
            return run_settings(self.run_folder)
        if self.experiment is not None:
            return load_settings(ExperimentSettings, experiment_file(self.experiment), self.overrides)
        raise SettingsError(
            "name a student: --run FOLDER, or --weights FILE with --experiment NAME (for a teacher --experiment alone)"
        )

    def student(self, device: torch.device) -> Model:
        """The student.

        Raises:
            SettingsError: none is named.
            CheckpointError: its weights do not fit its settings.
        """
        settings, weights = self.settings(), self.weights
        if weights is None and self.run_folder is not None:
            weights = run_weights(self.run_folder)
        if weights is None:
            raise SettingsError("name a student: --run FOLDER, or --weights FILE with --experiment NAME")
        student, label_map = load_student(settings, weights, device)
        settings.grid.check_fits(label_map)
        return Model(weights, settings, label_map, lambda batch: student(batch).voxel_logits)


subject_options = gathered(
    "subject",
    Subject,
    click.option("--run", "run_folder", type=path_type, help="Folder of a training run."),
    click.option(
        "--weights", type=path_type, help="A student's weights: of --experiment, or of --run in place of its own."
    ),
    click.option("--experiment", help="Experiment whose settings fit --weights or a teacher."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of --experiment."),
)
at_least_one = click.IntRange(min=1)
plan_options = gathered(
    "plan",
    PredictionPlan,
    click.option(
        "--views",
        type=at_least_one,
        default=1,
        help="Views of each scan to average over: itself, and flipped, rotated and scaled ones.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the views."),
    click.option("--batch-size", type=at_least_one, default=1, help="Scan-views predicted at once."),
)


def split_option(default: str) -> Decorator:
    """The option that chooses scans; `default` says in words what is taken without it."""
    text = f"Split or sequence; repeatable.  [default: {default}]"
    return click.option("--split", "splits", multiple=True, help=text)


def online_teacher(
    settings: ExperimentSettings, checkpoint: Path | None, load: TeacherLoader, device: torch.device
) -> Teacher | None:
    """The teacher of `targets: online`; None for other targets, or where none is named.

    Raises:
        CheckpointError: it does not load completely.
    """
    if checkpoint is None or settings.targets != "online":
        return None
    return load(settings.teacher, checkpoint, device)


def experiment_file(experiment: str) -> Path:
    """Path of an experiment named by its file's name or by a path.

    Raises:
        SettingsError: there is none; names those that there are.
    """
    found = find_config(experiment, "experiments")
    if found is None:
        known = ", ".join(known_configs("experiments"))
        raise SettingsError(f"no experiment '{experiment}' (there are: {known}) and no file of that name")
    return found
