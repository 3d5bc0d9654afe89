"""Commands for what comes after training: evaluate, predict, render."""

from pathlib import Path
from typing import Any, get_args

import click

from common.base.command_options import data_option, device_option, optional_data_option, path_type
from common.base.devices import select_device
from common.base.errors import DataError, SettingsError
from common.base.files import check_replaceable, check_writable, write_json
from common.base.text import count_text, shortened
from common.scans.dataset import Dataset, open_dataset
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from common.training.predictor import PredictionPlan
from stage2_train_student.command_options import (
    Model,
    Subject,
    file_option,
    plan_options,
    split_option,
    subject_options,
)
from stage2_train_student.evaluation import evaluate as measuring
from stage2_train_student.evaluation.evaluation_file import (
    TRAINED_ON,
    scans_hash,
    sequences_that_chose,
    shared_sequences,
    write_evaluation,
)
from stage2_train_student.evaluation.own_files import own_scans
from stage2_train_student.evaluation.own_predictions import Kind, predict_own
from stage2_train_student.evaluation.submission import write_predictions
from stage2_train_student.training.checksums import file_hash

MOST_LISTED = 10
"""Files that `predict` names; there may be thousands."""

RUNS = Path("runs")
"""Where a teacher's evaluation goes: nothing is written beside a checkpoint that others own."""

MOST_NAMED = 25
"""Splits and sequences in the name of a report; more would be longer than a file's name may be."""


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
    subject: Subject,
    teacher: Path | None,
    agreement: Path | None,
    splits: tuple[str, ...],
    plan: PredictionPlan,
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
    if teacher is not None and subject.weights is not None:
        raise SettingsError("--teacher and --weights name two models; compare a student with --agreement TEACHER")
    chosen, who = select_device(device), "student" if teacher is None else "teacher"

    def load_as_model(checkpoint: Path) -> Model:
        settings = subject.settings()
        label_map = load_label_map(settings.dataset)
        settings.grid.check_fits(label_map)
        live = load_teacher(settings.teacher, checkpoint, chosen)
        return Model(checkpoint, settings, label_map, measuring.teacher_logits(live, label_map))

    model = subject.student(chosen) if teacher is None else load_as_model(teacher)
    label_map, dataset = model.label_map, Dataset.open(data, model.label_map)
    splits = splits or default_evaluation(dataset)
    scans = select_reporting_absent(dataset, splits)
    other = None if agreement is None else load_as_model(agreement).predictor(chosen, plan._replace(views=1))
    chosen_splits = "_".join(splits) if len(splits) <= MOST_NAMED else f"{len(splits)}_sequences"
    name = f"evaluation_{chosen_splits}{f'_{plan.views}views' if plan.views > 1 else ''}.json"
    # Beside a teacher may be another's folder, such as configs/.
    beside = (subject.run_folder or RUNS) / f"{model.path.stem}_{name}" if teacher else model.path.parent / name
    path = json_file or beside
    for place in (path, confusion or path):
        check_replaceable(place)
    evaluation = measuring.evaluate(model.predictor(chosen, plan), dataset, scans, other)
    chosen_on = [] if teacher else sequences_that_chose(model.path, model.settings, splits, label_map)
    trained_on = [] if teacher else shared_sequences(model.settings.train, splits, label_map)
    numbers: dict[str, Any] = {
        "weights": str(model.path),
        "splits": list(splits),
        "scans": len(scans),
        "views": plan.views,
        "seed": plan.seed,
        # Recorded predictions are a folder.
        "weights_sha256": file_hash(model.path) if model.path.is_file() else None,
        "scans_sha256": scans_hash(scans),
        "chosen_on": chosen_on,
        "trained_on": trained_on,
        **measuring.full_report(evaluation, label_map),
    }
    if agreement is not None:
        numbers["agreement"]["teacher"] = str(agreement)
    write_json(path, numbers)
    click.echo(measuring.table(numbers))
    if trained_on:
        click.echo(f"note: the student was trained on {', '.join(trained_on)}: {TRAINED_ON}", err=True)
    if chosen_on:
        click.echo(
            f"note: {model.path.name} was chosen among the run's students by its mIoU on {', '.join(chosen_on)}, so "
            "this mIoU is a little optimistic",
            err=True,
        )
    click.echo(f"{who} {model.path}, {count_text(len(scans), 'scan')}; written to {path}")
    if subject.run_folder is not None and teacher is None and subject.weights is None:
        click.echo(f"kept for compare in {write_evaluation(subject.run_folder, model.path, numbers)}")
    if confusion is not None:
        from stage2_train_student.evaluation.render import draw_confusion, save_picture

        title = f"{who} {model.path}, {', '.join(splits)}"
        save_picture(draw_confusion(evaluation.matrix, label_map, title), confusion)
        click.echo(f"confusion matrix: {confusion}")


@click.command()
@click.argument("files", nargs=-1, type=path_type)
@optional_data_option
@subject_options
@split_option("every sequence on this disk; with --zip, test")
@plan_options
@click.option("--out", type=path_type, help="Folder for the benchmark's files, or for what FILES get.")
@click.option("--zip", "archive", type=path_type, help="Zip for the benchmark's server.")
@click.option("--format", "kind", type=click.Choice(get_args(Kind)), default="label", help="What FILES get, but bags.")
@file_option
@device_option
def predict(
    files: tuple[Path, ...],
    data: Path | None,
    subject: Subject,
    splits: tuple[str, ...],
    plan: PredictionPlan,
    out: Path | None,
    archive: Path | None,
    kind: Kind,
    file_options: tuple[str, ...],
    device: str,
) -> None:
    """Write a label for every point: of a dataset in the benchmark's layout, or of any files.

    FILES are scans without a dataset around them (.bin, .npy, .pcd, .ply), folders of such, and ROS bags. Labels are
    written beside each as NAME.predicted.label, or into --out as NAME.label: a raw id for each point, uint32, as the
    benchmark has them; --format ply writes the points, too, with colours. Of a bag a copy is written, with a topic
    more: the clouds with the fields label and rgb.

    \b
    Examples:
      polar-distill predict --data dataset --run runs/full --out predictions
      polar-distill predict --data dataset --run runs/full --views 8 --zip submission.zip
      polar-distill predict scan.pcd drive.mcap --run runs/full --out predictions
    """
    if bool(files) == (data is not None):
        raise SettingsError("say what is to be predicted: --data FOLDER for scans of a dataset, or FILES; not both")
    if archive is not None and archive.suffix != ".zip":
        raise SettingsError(f"--zip {archive}: the benchmark's server takes names that end in .zip only")
    if files and (splits or archive is not None):
        raise SettingsError("--split and --zip are for scans of a dataset (--data), not for FILES")
    if data is not None and (file_options or kind != "label"):
        raise SettingsError("--file-option and --format are for FILES, not for scans of a dataset")
    chosen = select_device(device)
    model = subject.student(chosen)
    predictor = model.predictor(chosen, plan)
    if data is None:
        written = predict_own(own_scans(files, model.label_map, file_options, out), predictor, out, kind)
        for path in [*written][:MOST_LISTED]:
            click.echo(f"{path}")
        more = f", the first {MOST_LISTED} above" if len(written) > MOST_LISTED else ""
        clouds = count_text(sum(written.values()), "scan")
        click.echo(f"student {model.path}: {clouds} predicted in {count_text(len(written), 'file')}{more}")
        return
    dataset = Dataset.open(data, model.label_map)
    splits = splits or (tuple(dataset.files.sequences()) if archive is None else ("test",))
    scans = select_reporting_absent(dataset, splits)
    lacking = sorted(set(model.label_map.splits.get("test", ())) - {scan.sequence for scan in scans})
    if archive is not None and lacking:
        click.echo(f"note: the server wants all test sequences; the zip lacks {shortened(lacking)}", err=True)
    if out is not None:
        check_writable(out)
    found = predictor.predict(dataset, scans, "predict")
    count = write_predictions(found, dataset, out, archive, splits)
    where = " and ".join(str(path) for path in (out, archive) if path is not None)
    click.echo(f"student {model.path}: {count_text(count, 'prediction file')} under {where}")


@click.command()
@data_option
@subject_options
@click.option("--scan", "scan_names", multiple=True, required=True, help="For example 00/000000; repeatable.")
@click.option("--teacher", type=path_type, help="Teacher checkpoint to run on the scans.")
@click.option("--cache", help="Target store to take the teacher's logits and features from instead.")
@click.option("--layer", default="up0e", help="Teacher layer whose pillar features are drawn.")
@click.option("--radius", type=click.FloatRange(min=1), default=50.0, help="Metres shown each way.")
@click.option("--out", type=path_type, default=Path("pictures"), help="Folder for 00_000000.png.")
@device_option
@click.pass_obj
def render(
    load_teacher: TeacherLoader,
    data: Path,
    subject: Subject,
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
    from stage2_train_student.evaluation.picture_sources import Viewers, cached_teacher, live_teacher, scan_picture
    from stage2_train_student.evaluation.render import draw_scan, save_picture

    if teacher is not None and cache is not None:
        raise SettingsError("--teacher and --cache both say where the teacher's targets come from; give one of them")
    chosen, scans = select_device(device), [ScanId.parse(name) for name in scan_names]
    settings = subject.settings()
    student = subject.student(chosen).logits if subject.names_student else None
    dataset, grid, targets = open_dataset(data, settings.dataset), settings.grid.grid(), None
    if teacher is not None:
        targets = live_teacher(load_teacher(settings.teacher, teacher, chosen), [layer], dataset.label_map)
    elif cache is not None:
        targets = cached_teacher(cache, [layer], grid, dataset.label_map)
    check_writable(out)
    for scan in scans:
        picture = scan_picture(dataset, scan, Viewers(grid, chosen, student, targets, layer))
        path = out / f"{scan.sequence}_{scan.frame}.png"
        save_picture(draw_scan(picture, dataset.label_map, grid, radius), path)
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
        f"note: no sequence of val is on this disk; evaluating on {shortened(labelled)}. Where the student was trained "
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
