"""The command `train`."""

import shlex
from pathlib import Path

import click

from common.base.command_options import cache_option, data_option, device_option, path_type, resume_option, set_option
from common.base.config import load_settings
from common.base.text import command_line, count_text
from common.targets.store.local_copy import CopySettings
from common.targets.teacher import TeacherLoader
from common.training.processes import started_processes
from stage2_train_student.command_options import (
    experiment_file,
    experiment_option,
    online_teacher,
    online_teacher_option,
)
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.train import Inputs
from stage2_train_student.train import run as run_training
from stage2_train_student.training.state import BEST_STUDENT, LAST_STUDENT


@click.command()
@data_option
@experiment_option
@click.option("--run", "run_folder", type=path_type, help="Folder for the results.  [default: runs/<experiment>]")
@cache_option
@click.option(
    "--local-copy",
    type=path_type,
    default=CopySettings().folder,
    help="Folder that keeps what was read from a --cache at a URL.",
)
@click.option(
    "--local-copy-gb",
    type=click.FloatRange(min=0),
    default=CopySettings().gigabytes,
    help="Largest size of that folder in GB; 0 keeps nothing.",
)
@online_teacher_option
@resume_option
@device_option
@set_option
@click.pass_obj
def train(
    load_teacher: TeacherLoader,
    data: Path,
    experiment: str,
    run_folder: Path | None,
    cache: str,
    local_copy: Path,
    local_copy_gb: float,
    teacher: Path | None,
    resume: bool,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train a student.

    \b
    Examples:
      polar-distill train --data dataset --experiment full
      polar-distill train --data dataset --experiment vpd --set optimiser.learning_rate=1e-3
      polar-distill train --data dataset --experiment full --resume
      torchrun --nproc-per-node=4 -m polar_distill -- train --data dataset --set batch_size=8
    """
    settings = load_settings(ExperimentSettings, experiment_file(experiment), overrides)
    folder = run_folder or Path("runs") / Path(experiment).stem
    copies = CopySettings(local_copy, local_copy_gb)
    with started_processes(device) as processes:
        live = online_teacher(settings, teacher, load_teacher, processes.device)
        state = run_training(settings, Inputs(data, cache, live, copies), folder, resume, processes)
    if not processes.first:
        return
    best = f"best mIoU {100 * state.best_miou:.2f}" if state.best_miou >= 0 else "not validated"
    saved = folder / (BEST_STUDENT if state.best_miou >= 0 else LAST_STUDENT)
    trained = f"{count_text(state.step, 'step')}, {count_text(state.epoch, 'epoch')}"
    click.echo(f"{trained} finished; {best}; student: {saved}")
    click.echo(f"curves: tensorboard --logdir {shlex.quote(str(folder))}")
    click.echo(f"next: {command_line('evaluate', '--data', data, '--run', folder)}")
