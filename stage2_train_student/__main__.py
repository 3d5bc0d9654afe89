"""Commands of stage two: `python -m stage2_train_student --help`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from common.config import load_settings
from common.dataset import select_scans
from common.devices import select_device
from common.errors import DataError, SettingsError
from common.label_map import LabelMap
from common.memory import keep_freed_memory
from common.semantic_kitti import ScanId, has_labels, list_scans, present_sequences
from common.target_store.local_copy import CopySettings
from stage2_train_student.evaluate import evaluate as evaluate_scans
from stage2_train_student.evaluate import predict as predict_scans
from stage2_train_student.evaluate import report, student_logits, table, write_report
from stage2_train_student.runs import load_student, run_settings, run_weights
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.train import run as run_training
from stage2_train_student.training_state import BEST_STUDENT, LAST_STUDENT

EXPERIMENTS = Path("configs/experiments")

path_type = click.Path(path_type=Path)
data_option = click.option("--data", type=path_type, required=True, help="Folder that holds sequences/.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)


def split_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that chooses scans; `default` says in words what is taken without it."""
    text = f"Split or sequence; repeatable.  [default: {default}]"
    return click.option("--split", "splits", multiple=True, help=text)


def student_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a trained student."""
    for option in (
        click.option("--experiment", help="Experiment whose settings fit --weights."),
        click.option("--weights", type=path_type, help="A plain PolarNet state dict, instead of --run."),
        click.option("--run", "run_folder", type=path_type, help="Folder of a training run."),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Train PolarNet students from cached teacher targets, evaluate them and write predictions."""


@main.command()
@data_option
@click.option(
    "--experiment",
    default="full",
    show_default=True,
    help="Name of a file in configs/experiments/ (baseline, vpd, lwd, logit, full), or a path to one.",
)
@click.option("--run", "run_folder", type=path_type, help="Folder for the results.  [default: runs/<experiment>]")
@click.option(
    "--cache",
    default="cache/semantic_kitti",
    show_default=True,
    help="Target store: a folder, or a URL such as s3://bucket/prefix.",
)
@click.option(
    "--local-copy",
    type=path_type,
    default=CopySettings().folder,
    show_default=True,
    help="Folder that keeps what was read from a --cache at a URL.",
)
@click.option(
    "--local-copy-gb",
    type=click.FloatRange(min=0),
    default=CopySettings().gigabytes,
    show_default=True,
    help="Largest size of that folder in GB; 0 keeps nothing.",
)
@click.option("--teacher", type=path_type, help="Teacher checkpoint, for targets=online.")
@click.option("--resume", is_flag=True, help="Continue the run in its folder.")
@device_option
@set_option
def train(
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
      python -m stage2_train_student train --data dataset --experiment full
      python -m stage2_train_student train --data dataset --experiment vpd --set optimiser.learning_rate=1e-3
      python -m stage2_train_student train --data dataset --experiment full --resume
    """
    settings = load_settings(ExperimentSettings, experiment_file(experiment), overrides)
    folder = run_folder or Path("runs") / Path(experiment).stem
    copies = CopySettings(local_copy, local_copy_gb)
    state = run_training(settings, data, folder, select_device(device), cache, teacher, resume, copies)
    best = f"best mIoU {100 * state.best_miou:.2f}" if state.best_miou >= 0 else "not validated"
    saved = folder / (BEST_STUDENT if state.best_miou >= 0 else LAST_STUDENT)
    click.echo(f"{state.step} steps, {state.epoch} epochs finished; {best}; student: {saved}")
    click.echo(f"curves: tensorboard --logdir {folder}    next: make evaluate RUN={folder} DATA={data}")


@main.command()
@data_option
@student_options
@split_option("val; without it on this disk every labelled sequence")
@device_option
def evaluate(
    data: Path,
    run_folder: Path | None,
    weights: Path | None,
    experiment: str | None,
    splits: tuple[str, ...],
    device: str,
) -> None:
    """IoU of every class and their mean, over all points of a split.

    The numbers are also written beside the weights, as evaluation_<split>.json.
    """
    settings, weights = choose_student(run_folder, weights, experiment)
    chosen = select_device(device)
    student, label_map = load_student(settings, weights, chosen)
    splits = splits or default_evaluation(data, label_map)
    scans = select_reporting_absent(data, label_map, splits)
    matrix = evaluate_scans(student_logits(student), data, scans, settings.grid.grid(), label_map, chosen)
    numbers = {"weights": str(weights), "splits": list(splits), "scans": len(scans), **report(matrix, label_map)}
    path = weights.parent / f"evaluation_{'_'.join(splits)}.json"
    write_report(path, numbers)
    click.echo(table(numbers))
    click.echo(f"student {weights}, {len(scans)} scans; written to {path}")


@main.command()
@data_option
@student_options
@split_option("every sequence on this disk")
@click.option("--out", type=path_type, required=True, help="Folder for sequences/00/predictions/000000.label.")
@device_option
def predict(
    data: Path,
    run_folder: Path | None,
    weights: Path | None,
    experiment: str | None,
    splits: tuple[str, ...],
    out: Path,
    device: str,
) -> None:
    """Write a label for every point, in the benchmark's layout."""
    settings, weights = choose_student(run_folder, weights, experiment)
    chosen = select_device(device)
    student, label_map = load_student(settings, weights, chosen)
    scans = select_reporting_absent(data, label_map, splits or tuple(present_sequences(data)))
    files = predict_scans(student_logits(student), data, scans, settings.grid.grid(), label_map, chosen, out)
    click.echo(f"student {weights}: {files} prediction files under {out}")


def choose_student(
    run_folder: Path | None, weights: Path | None, experiment: str | None
) -> tuple[ExperimentSettings, Path]:
    """Settings and weights of the student that the options name.

    Raises:
        SettingsError: they name none.
    """
    if run_folder is not None:
        return run_settings(run_folder), weights or run_weights(run_folder)
    if weights is not None and experiment is not None:
        return load_settings(ExperimentSettings, experiment_file(experiment)), weights
    raise SettingsError("name a student: --run FOLDER, or --weights FILE with --experiment NAME")


def default_evaluation(data: Path, label_map: LabelMap) -> tuple[str, ...]:
    """`val`, or where none of it is on this disk every labelled sequence, with a warning what that means.

    Raises:
        DataError: nothing here is labelled.
    """
    present = present_sequences(data)
    if set(label_map.splits.get("val", ())) & set(present):
        return ("val",)
    labelled = tuple(name for name in present if has_labels(data, list_scans(data, [name])[0]))
    if not labelled:
        raise DataError(f"{data}: no sequence here has labels, so mIoU cannot be computed; predict needs no labels.")
    click.echo(
        f"note: no sequence of val is on this disk; evaluating on {', '.join(labelled)}. Where the student was trained "
        "on them this says nothing about new scans.",
        err=True,
    )
    return labelled


def select_reporting_absent(data: Path, label_map: LabelMap, splits: tuple[str, ...]) -> list[ScanId]:
    """Scans of some splits; sequences that are not on this disk are named on standard error."""
    scans, absent = select_scans(data, label_map, splits)
    if absent:
        click.echo(f"note: sequences not on this disk, left out: {', '.join(absent)}", err=True)
    return scans


def experiment_file(experiment: str) -> Path:
    """Path of an experiment named by its file's name or by a path.

    Raises:
        SettingsError: there is none; names those that there are.
    """
    for path in (EXPERIMENTS / f"{experiment}.yaml", Path(experiment)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
    raise SettingsError(f"no experiment '{experiment}' in {EXPERIMENTS} (there are: {known}) and no file of that name")


if __name__ == "__main__":
    keep_freed_memory()
    main(prog_name="python -m stage2_train_student")
