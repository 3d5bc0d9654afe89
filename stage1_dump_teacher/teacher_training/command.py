"""The command `train-teacher`."""

from pathlib import Path

import click

from common.base.command_options import (
    TEACHER_CONFIG,
    data_option,
    device_option,
    path_type,
    resume_option,
    set_option,
)
from common.base.config import load_settings
from common.base.devices import select_device
from common.base.signals import INTERRUPTED
from common.base.text import command_line
from common.scans.dataset import open_dataset
from common.training.trainer import finished
from stage1_dump_teacher.command_options import load_dump_settings, shared_words
from stage1_dump_teacher.data_checks.looking import TRAINED_ON, surveyed, write_survey
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings
from stage1_dump_teacher.teacher_training.train import BEST_TEACHER, LAST_TEACHER, run


@click.command("train-teacher")
@data_option
@click.option("--run", "folder", type=path_type, default=Path("runs/teacher"), help="Folder of the training run.")
@click.option(
    "--config",
    type=path_type,
    default=Path("configs/teachers/train_cylinder3d.yaml"),
    help="The network and its training.",
)
@resume_option
@device_option
@set_option
def train_teacher(
    data: Path,
    folder: Path,
    config: Path,
    resume: bool,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train a Cylinder3D of any width on labelled scans, for datasets without a published checkpoint.

    Writes teacher_best.safetensors and teacher_last.safetensors in the published layout, ready for `dump
    --teacher`, and what the scans look like, for the doctor.

    \b
    Examples:
      polar-distill train-teacher --data dataset
      polar-distill train-teacher --data dataset --set widths.base=16 --set epochs=20 --run runs/small
    """
    settings = load_settings(TeacherTrainingSettings, config, overrides)
    state = run(settings, data, folder, select_device(device), resume)
    best = folder / BEST_TEACHER
    written = best if best.is_file() else folder / LAST_TEACHER
    click.echo(f"teacher  {written}" + (f"  mIoU {100 * state.best_miou:.2f}" if state.best_miou >= 0 else ""))
    if not finished(state, settings):
        click.echo(f"stopped after {state.step} steps; the same command with --resume goes on")
        raise click.exceptions.Exit(INTERRUPTED)
    dataset = open_dataset(data, settings.dataset)
    _, survey = surveyed(dataset, dataset.select(settings.train).scans, settings.grid)
    write_survey(survey, folder / TRAINED_ON)
    usual = load_dump_settings(TEACHER_CONFIG, [f"dataset={settings.dataset}"]).grid
    same = shared_words(settings.dataset, settings.grid, usual)
    click.echo(f"next: {command_line('dump', '--data', data, '--teacher', written, *same)}")
