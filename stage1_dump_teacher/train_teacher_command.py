"""The command `train-teacher`."""

from pathlib import Path

import click

from common.config import load_settings
from common.devices import select_device
from stage1_dump_teacher.teacher_settings import TeacherTrainingSettings


@click.command("train-teacher")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder that holds sequences/.")
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("runs/teacher"),
    show_default=True,
    help="Folder of the training run.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("configs/teachers/train_cylinder3d.yaml"),
    show_default=True,
    help="The network and its training.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --run.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.pass_context
def train_teacher(
    context: click.Context,
    data: Path,
    folder: Path,
    config: Path,
    resume: bool,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Train a Cylinder3D of any width on labelled scans, for datasets without a published checkpoint.

    Writes teacher_best.safetensors and teacher_last.safetensors in the published layout, ready for TEACHER=.

    \b
    Examples:
      polar-distill train-teacher --data dataset
      polar-distill train-teacher --data dataset --set widths.base=16 --set epochs=20 --run runs/small
    """
    # Imported here so that the other commands start where spconv does not.
    from stage1_dump_teacher.store_commands import INTERRUPTED
    from stage1_dump_teacher.teacher_state import BEST_TEACHER, LAST_TEACHER
    from stage1_dump_teacher.train_teacher import reached, run

    settings = load_settings(TeacherTrainingSettings, config, overrides)
    state = run(settings, data, folder, select_device(device), resume)
    best = folder / BEST_TEACHER
    written = best if best.is_file() else folder / LAST_TEACHER
    click.echo(f"teacher  {written}" + (f"  mIoU {100 * state.best_miou:.2f}" if state.best_miou >= 0 else ""))
    if state.epoch < settings.epochs and not reached(state, settings):
        click.echo(f"stopped after {state.step} steps; go on with --resume (make train-teacher RESUME=1)")
        context.exit(INTERRUPTED)
    click.echo(f"next: make dump-teacher TEACHER={written} DATA={data}")
