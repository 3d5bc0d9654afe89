"""Commands for what comes after training: evaluate, predict, render."""

from pathlib import Path
from typing import Any

import click

from common.base.command_options import data_option, device_option, path_type
from common.base.devices import select_device
from common.base.errors import DataError, SettingsError
from common.base.files import check_writable
from common.scans.dataset import Dataset, open_dataset
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from common.training.predictor import Predictor
from stage2_train_student.command_options import (
    choose_subject,
    plan_of,
    plan_options,
    split_option,
    student_of,
    subject_options,
)
from stage2_train_student.evaluation.evaluate import evaluate as measure
from stage2_train_student.evaluation.evaluate import (
    full_report,
    student_logits,
    table,
    teacher_logits,
    write_report,
)
from stage2_train_student.evaluation.evaluation_file import (
    file_hash,
    scans_hash,
    sequences_that_chose,
    write_evaluation,
)
from stage2_train_student.evaluation.submission import write_predictions
from stage2_train_student.training.runs import load_student

RUNS = Path("runs")
"""Where a teacher's evaluation goes: nothing is written beside a checkpoint that others own."""


@click.command()
@data_option
@subject_options
@click.option("--teacher", type=path_type, help="Evaluate this Cylinder3D checkpoint instead of a student.")
@click.option("--agreement", type=path_type, help="Teacher checkpoint to compare the predictions with.")
@split_option("val, or every labelled sequence where val is not on this disk")
@plan_options
@click.option("--confusion", type=path_type, help="PNG to draw the confusion matrix into.")
@click.option(
    "--json",
    "json_file",
    type=path_type,
    help="Where the numbers go.  [default: beside the weights; a teacher's in runs/]",
)
@device_option
@click.pass_obj
def evaluate(
    load_teacher: TeacherLoader,
    data: Path,
    run_folder: Path | None,
    weights: Path | None,
    experiment: str | None,
    overrides: tuple[str, ...],
    teacher: Path | None,
    agreement: Path | None,
    splits: tuple[str, ...],
    views: int,
    seed: int,
    batch_size: int,
    confusion: Path | None,
    json_file: Path | None,
    device: str,
) -> None:
    """IoU of every class and their mean, over all points of a split and by distance from the sensor.

    The numbers are also written beside the weights, as evaluation_<split>.json, with the confusion matrix; a teacher's
    into --run, or else into runs/. Those of a --run are kept in its evaluation.json as well, where compare finds them.

    \b
    Examples:
      polar-distill evaluate --data dataset --run runs/full --views 8 --batch-size 4
      polar-distill evaluate --data dataset --run runs/full --agreement cylinder3d_val_65.4.pt
      polar-distill evaluate --data dataset --experiment full --teacher cylinder3d_val_65.4.pt
    """
    if teacher is not None and weights is not None:
        raise SettingsError("--teacher and --weights name two models; compare a student with --agreement TEACHER")
    chosen, plan = select_device(device), plan_of(views, seed, batch_size)
    if teacher is not None:
        settings, _ = choose_subject(run_folder, None, experiment, overrides)
        label_map = load_label_map(settings.dataset)
        model = teacher_logits(load_teacher(settings.teacher, teacher, chosen), label_map)
        evaluated, who = teacher, "teacher"
    else:
        settings, evaluated = student_of(run_folder, weights, experiment, overrides)
        student, label_map = load_student(settings, evaluated, chosen)
        model, who = student_logits(student), "student"
    dataset = Dataset.open(data, label_map)
    splits = splits or default_evaluation(dataset)
    scans = select_reporting_absent(dataset, splits)
    predictor, other = Predictor(model, settings.grid.grid(), chosen, plan), None
    if agreement is not None:
        logits = teacher_logits(load_teacher(settings.teacher, agreement, chosen), label_map)
        other = Predictor(logits, predictor.grid, chosen, plan._replace(views=1))
    name = f"evaluation_{'_'.join(splits)}{f'_{views}views' if views > 1 else ''}.json"
    # Beside a teacher may be another's folder, such as configs/.
    beside = evaluated.parent / name if who == "student" else (run_folder or RUNS) / f"{evaluated.stem}_{name}"
    path = json_file or beside
    check_writable(path.parent)
    evaluation = measure(predictor, dataset, scans, "evaluate", other)
    named: dict[str, Any] = {"weights": str(evaluated), "splits": list(splits), "scans": len(scans), "views": views}
    named |= {"seed": seed, "weights_sha256": file_hash(evaluated), "scans_sha256": scans_hash(scans)}
    chosen_on = [] if who == "teacher" else sequences_that_chose(evaluated, settings, splits, label_map)
    numbers = named | {"chosen_on": chosen_on} | full_report(evaluation, label_map)
    if agreement is not None:
        numbers["agreement"]["teacher"] = str(agreement)
    write_report(path, numbers)
    click.echo(table(numbers))
    if chosen_on:
        click.echo(
            f"note: {evaluated.name} was chosen among the run's students by its mIoU on {', '.join(chosen_on)}, so "
            "this mIoU is a little optimistic",
            err=True,
        )
    click.echo(f"{who} {evaluated}, {len(scans)} scans; written to {path}")
    if run_folder is not None and teacher is None and weights is None:
        click.echo(f"kept for compare in {write_evaluation(run_folder, evaluated, numbers)}")
    if confusion is not None:
        from stage2_train_student.evaluation.render import draw_confusion, save_picture

        save_picture(draw_confusion(evaluation.matrix, label_map, f"{who} {evaluated}, {', '.join(splits)}"), confusion)
        click.echo(f"confusion matrix: {confusion}")


@click.command()
@data_option
@subject_options
@split_option("every sequence on this disk; with --zip, test")
@plan_options
@click.option("--out", type=path_type, help="Folder for sequences/00/predictions/000000.label.")
@click.option("--zip", "archive", type=path_type, help="Zip for the benchmark's server.")
@device_option
def predict(
    data: Path,
    run_folder: Path | None,
    weights: Path | None,
    experiment: str | None,
    overrides: tuple[str, ...],
    splits: tuple[str, ...],
    views: int,
    seed: int,
    batch_size: int,
    out: Path | None,
    archive: Path | None,
    device: str,
) -> None:
    """Write a label for every point, in the benchmark's layout.

    \b
    Examples:
      polar-distill predict --data dataset --run runs/full --out predictions
      polar-distill predict --data dataset --run runs/full --views 8 --zip submission.zip
    """
    if out is None and archive is None:
        raise SettingsError("say where predictions go: --out FOLDER, --zip FILE, or both")
    if archive is not None and archive.suffix != ".zip":
        raise SettingsError(f"--zip {archive}: the benchmark's server takes names that end in .zip only")
    settings, weights = student_of(run_folder, weights, experiment, overrides)
    chosen = select_device(device)
    student, label_map = load_student(settings, weights, chosen)
    dataset = Dataset.open(data, label_map)
    splits = splits or (tuple(dataset.files.sequences()) if archive is None else ("test",))
    scans = select_reporting_absent(dataset, splits)
    lacking = sorted(set(label_map.splits.get("test", ())) - {scan.sequence for scan in scans})
    if archive is not None and lacking:
        click.echo(f"note: the server wants all test sequences; the zip lacks {', '.join(lacking)}", err=True)
    predictor = Predictor(student_logits(student), settings.grid.grid(), chosen, plan_of(views, seed, batch_size))
    found = predictor.predict(dataset, scans, "predict")
    files = write_predictions(found, label_map, out, archive)
    where = " and ".join(str(path) for path in (out, archive) if path is not None)
    click.echo(f"student {weights}: {files} prediction files under {where}")


@click.command()
@data_option
@subject_options
@click.option("--scan", "scan_names", multiple=True, required=True, help="For example 00/000000; repeatable.")
@click.option("--teacher", type=path_type, help="Teacher checkpoint to run on the scans.")
@click.option("--cache", help="Target store to take the teacher's logits and features from instead.")
@click.option("--layer", default="up0e", show_default=True, help="Teacher layer whose pillar features are drawn.")
@click.option("--radius", type=click.FloatRange(min=1), default=50.0, show_default=True, help="Metres shown each way.")
@click.option("--out", type=path_type, default=Path("pictures"), show_default=True, help="Folder for 00_000000.png.")
@device_option
@click.pass_obj
def render(
    load_teacher: TeacherLoader,
    data: Path,
    run_folder: Path | None,
    weights: Path | None,
    experiment: str | None,
    overrides: tuple[str, ...],
    scan_names: tuple[str, ...],
    teacher: Path | None,
    cache: str | None,
    layer: str,
    radius: float,
    out: Path,
    device: str,
) -> None:
    """Draw scans from above: ground truth, student, teacher, their errors, label weights, teacher features.

    What is not given is not drawn: a student needs --run or --weights, a teacher --teacher or --cache.

    \b
    Examples:
      polar-distill render --data dataset --scan 08/000000 --run runs/full --cache cache/val
      polar-distill render --data dataset --scan 08/000000 --run runs/full --teacher teacher.pt
      polar-distill render --data dataset --scan 08/000000 --experiment full
    """
    # Imported here: drawing needs matplotlib, which takes a second to load.
    from stage2_train_student.evaluation.picture_sources import cached_teacher, live_teacher, scan_picture
    from stage2_train_student.evaluation.render import draw_scan, save_picture

    if teacher is not None and cache is not None:
        raise SettingsError("--teacher and --cache both say where the teacher's targets come from; give one of them")
    chosen = select_device(device)
    scans = [ScanId.parse(name) for name in scan_names]
    settings, weights = choose_subject(run_folder, weights, experiment, overrides)
    student = None
    if run_folder is not None or weights is not None:
        settings, weights = student_of(run_folder, weights, experiment, overrides)
        student = student_logits(load_student(settings, weights, chosen)[0])
    dataset, grid = open_dataset(data, settings.dataset), settings.grid.grid()
    label_map, targets = dataset.label_map, None
    if teacher is not None:
        targets = live_teacher(load_teacher(settings.teacher, teacher, chosen), layer, label_map)
    elif cache is not None:
        targets = cached_teacher(cache, layer, grid, label_map)
    for scan in scans:
        picture = scan_picture(dataset, scan, grid, chosen, student, targets, layer)
        path = out / f"{scan.sequence}_{scan.frame}.png"
        save_picture(draw_scan(picture, label_map, grid, radius), path)
        click.echo(f"scan {scan}: {path}")


def default_evaluation(dataset: Dataset) -> tuple[str, ...]:
    """`val`, or where none of it is on this disk every labelled sequence, with a warning what that means.

    Raises:
        DataError: nothing here is labelled.
    """
    present = dataset.files.sequences()
    if set(dataset.label_map.splits.get("val", ())) & set(present):
        return ("val",)
    labelled = tuple(name for name in present if dataset.has_labels(dataset.files.scans([name])[0]))
    if not labelled:
        raise DataError(
            f"{dataset.root}: no sequence here has labels, so mIoU cannot be computed; predict needs no labels."
        )
    click.echo(
        f"note: no sequence of val is on this disk; evaluating on {', '.join(labelled)}. Where the student was trained "
        "on them this says nothing about new scans.",
        err=True,
    )
    return labelled


def select_reporting_absent(dataset: Dataset, splits: tuple[str, ...]) -> list[ScanId]:
    """Scans of some splits; what is left out is named on standard error."""
    scans, notes = dataset.select(splits)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return scans
