"""Options that several commands of stage two share, and what they name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from common.base.command_options import path_type
from common.base.config import load_settings
from common.base.config_files import find_config, known_configs
from common.base.errors import SettingsError
from common.targets.teacher import Teacher, TeacherLoader
from common.training.predictor import PredictionPlan
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import run_settings, run_weights

experiment_option = click.option(
    "--experiment",
    default="full",
    show_default=True,
    help="Name of a file in configs/experiments/ (baseline, vpd, lwd, logit, full), or a path to one.",
)
online_teacher_option = click.option("--teacher", type=path_type, help="Teacher checkpoint, for targets=online.")

Command = Callable[..., Any]


class Subject(NamedTuple):
    """Settings of an experiment and the weights of its student, None where no student is named."""

    settings: ExperimentSettings
    weights: Path | None


def decorate(command: Command, *options: Callable[[Command], Command]) -> Command:
    """A command with some options, listed by --help in the order given here."""
    for option in reversed(options):
        command = option(command)
    return command


def split_option(default: str) -> Callable[[Command], Command]:
    """The option that chooses scans; `default` says in words what is taken without it."""
    text = f"Split or sequence; repeatable.  [default: {default}]"
    return click.option("--split", "splits", multiple=True, help=text)


def subject_options(command: Command) -> Command:
    """Options that name an experiment's settings and a trained student; `choose_subject` reads them."""
    return decorate(
        command,
        click.option("--run", "run_folder", type=path_type, help="Folder of a training run."),
        click.option("--weights", type=path_type, help="A plain PolarNet state dict, instead of --run."),
        click.option("--experiment", help="Experiment whose settings fit --weights or a teacher."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of --experiment."
        ),
    )


def plan_options(command: Command) -> Command:
    """Options that say how scans are predicted; `plan_of` reads them."""
    at_least_one = click.IntRange(min=1)
    return decorate(
        command,
        click.option(
            "--views",
            type=at_least_one,
            default=1,
            show_default=True,
            help="Views of each scan to average over: itself, and flipped, rotated and scaled ones.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the views."),
        click.option(
            "--batch-size", type=at_least_one, default=1, show_default=True, help="Scan-views predicted at once."
        ),
    )


def plan_of(views: int, seed: int, batch_size: int) -> PredictionPlan:
    """What `plan_options` said."""
    return PredictionPlan(views, seed, batch_size)


def choose_subject(
    run_folder: Path | None, weights: Path | None, experiment: str | None, overrides: tuple[str, ...]
) -> Subject:
    """Settings and weights that the options name.

    Raises:
        SettingsError: they name no settings, or weights without settings that fit them.
    """
    if run_folder is not None:
        if overrides:
            raise SettingsError("--set changes the settings of --experiment; a run keeps those it was trained with")
        return Subject(run_settings(run_folder), weights)
    if experiment is not None:
        return Subject(load_settings(ExperimentSettings, experiment_file(experiment), overrides), weights)
    raise SettingsError(
        "name a student: --run FOLDER, or --weights FILE with --experiment NAME (for a teacher --experiment alone)"
    )


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


def student_of(
    run_folder: Path | None, weights: Path | None, experiment: str | None, overrides: tuple[str, ...]
) -> tuple[ExperimentSettings, Path]:
    """Settings and weights of the student that the options name.

    Raises:
        SettingsError: they name none.
    """
    settings, weights = choose_subject(run_folder, weights, experiment, overrides)
    if weights is None and run_folder is not None:
        weights = run_weights(run_folder)
    if weights is None:
        raise SettingsError("name a student: --run FOLDER, or --weights FILE with --experiment NAME")
    return settings, weights


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
