"""The command that compares training runs."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
import torch

from common.base.command_options import device_option, path_type
from common.base.devices import select_device
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.targets.teacher import Teacher, TeacherLoader
from stage2_train_student.comparison.experiments import (
    Experiment,
    choose_baseline,
    differing_settings,
    group_runs,
    one_label_map,
)
from stage2_train_student.comparison.notes import notes
from stage2_train_student.comparison.results import (
    Result,
    Source,
    choose_source,
    evaluation_protocol,
    report_protocol,
    results,
)
from stage2_train_student.comparison.tables import (
    class_table,
    csv_text,
    distance_table,
    markdown,
    settings_table,
    summary_table,
)
from stage2_train_student.comparison.training_runs import find_runs, read_run
from stage2_train_student.evaluation.evaluation_file import read_report

if TYPE_CHECKING:
    from stage2_train_student.comparison.scan_pictures import ScanPictures


@click.command()
@click.argument("folders", nargs=-1, required=True, type=path_type)
@click.option("--out", type=path_type, default=Path("comparison.html"), show_default=True, help="The page.")
@click.option("--title", default="Did distillation help?", show_default=True, help="Heading of the page.")
@click.option("--baseline", help="Experiment to measure the others against.  [default: the one without a teacher]")
@click.option(
    "--scores",
    type=click.Choice(get_args(Source)),
    help="Take IoU from each run's evaluation.json, or from its best validation.  [default: evaluation where every run "
    "has one]",
)
@click.option("--teacher-evaluation", type=path_type, help="JSON of evaluate --teacher: the teacher's mIoU is shown.")
@click.option("--data", type=path_type, help="Folder that holds sequences/: draws a scan as every student sees it.")
@click.option(
    "--scan", "scan_names", multiple=True, help="Scan to draw, such as 08/000000; repeatable.  [default: one]"
)
@click.option("--teacher", type=path_type, help="Teacher checkpoint to draw as well.")
@click.option("--radius", type=click.FloatRange(min=1), default=50.0, show_default=True, help="Metres drawn each way.")
@device_option
@click.pass_obj
def compare(
    load_teacher: TeacherLoader,
    folders: tuple[Path, ...],
    out: Path,
    title: str,
    baseline: str | None,
    scores: Source | None,
    teacher_evaluation: Path | None,
    data: Path | None,
    scan_names: tuple[str, ...],
    teacher: Path | None,
    radius: float,
    device: str,
) -> None:
    """Compare training runs on one HTML page that opens anywhere, without a network.

    FOLDERS are run folders, or folders that hold some. Runs that differ in their seed only are one experiment. The
    tables are also written beside the page, as Markdown and CSV. Only --data runs networks.

    \b
    Examples:
      polar-distill compare runs/baseline runs/full --out comparison.html
      polar-distill compare runs/sweep --data dataset --scan 08/000000 --teacher teacher.pt
    """
    # Imported here: they need matplotlib, which takes a second to load.
    from stage2_train_student.comparison.page import Comparison, page

    if out.suffix != ".html":
        raise SettingsError(f"--out {out}: a page ends in .html; the tables beside it get its name")
    if data is None and (scan_names or teacher is not None):
        raise SettingsError("--scan and --teacher are for pictures, which need --data, the folder of the scans")
    experiments = group_runs([read_run(folder) for folder in find_runs(list(folders))])
    label_map = one_label_map(experiments)
    reference = choose_baseline(experiments, baseline)
    source = choose_source(experiments, scores, label_map)
    found = results(experiments, reference, source, label_map)
    ordered = [result.experiment for result in found]
    pictures: list[ScanPictures] = []
    if data is not None:
        chosen = select_device(device)
        live = None if teacher is None else load_teacher(ordered[0].settings.teacher, teacher, chosen)
        pictures = draw(ordered, Dataset.open(data, label_map), scan_names, live, chosen, radius)
    comparison = Comparison(
        title=title,
        results=found,
        label_map=label_map,
        scored_on=scored_on(ordered, source),
        notes=notes(found, source, label_map),
        settings=differing_settings(ordered),
        teacher_miou=None if teacher_evaluation is None else teacher_miou(teacher_evaluation, ordered, source),
        pictures=pictures,
        radius=radius,
    )
    write_atomically(out, page(comparison).encode())
    write_atomically(out.with_suffix(".md"), tables_text(found, comparison.settings, comparison.notes).encode())
    write_atomically(out.with_suffix(".csv"), csv_text(found).encode())
    click.echo(markdown(summary_table(found)))
    click.echo(f"page: {out}    tables: {out.with_suffix('.md')}, {out.with_suffix('.csv')}")


def draw(
    experiments: list[Experiment],
    dataset: Dataset,
    scan_names: tuple[str, ...],
    teacher: Teacher | None,
    device: torch.device,
    radius: float,
) -> "list[ScanPictures]":
    """Pictures of the scans that were named, or of one that the experiments are validated on."""
    from stage2_train_student.comparison.scan_pictures import default_scan, draw_scans

    scans = [ScanId.parse(name) for name in scan_names] or [default_scan(experiments, dataset)]
    return draw_scans(experiments, dataset, scans, teacher, device, radius)


def teacher_miou(path: Path, experiments: list[Experiment], source: Source) -> float | None:
    """The teacher's mIoU from a report on the same points as the runs'.

    Raises:
        SettingsError: the runs' scores are no evaluations, or on other points.
        DataError: the report cannot be read.
    """
    if source != "evaluation":
        raise SettingsError("--teacher-evaluation needs an evaluation of every run; run evaluate --run for each")
    numbers = read_report(path)
    theirs, ours = report_protocol(numbers), evaluation_protocol(experiments[0].runs[0])
    if theirs != ours:
        unequal = ", ".join(f"{name} {theirs[name]} and {ours[name]}" for name in ours if theirs[name] != ours[name])
        raise SettingsError(f"{path}: the teacher was not scored on the same points as the students: {unequal}")
    return None if numbers["miou"] is None else float(numbers["miou"])


def scored_on(experiments: list[Experiment], source: Source) -> str:
    """The scans that scores are about, in words."""
    run = experiments[0].runs[0]
    if source == "validation" or run.evaluation is None:
        return f"validated on {', '.join(run.settings.validate_on) or 'nothing'}"
    numbers = run.evaluation
    views = f", {numbers['views']} views averaged" if numbers["views"] > 1 else ""
    return (
        f"evaluated on {', '.join(numbers['splits'])} ({numbers['scans']:,} scans, {numbers['points']:,} points){views}"
    )


def tables_text(found: list[Result], settings: dict[str, list[str]], remarks: list[str]) -> str:
    """All tables in Markdown."""
    names = [result.experiment.name for result in found]
    parts = [
        ("Summary", summary_table(found)),
        ("IoU of each class, %", class_table(found)),
        ("mIoU by distance", distance_table(found)),
        ("Settings that differ", settings_table(names, settings)),
    ]
    shown = [f"## {title}\n\n{markdown(table)}" for title, table in parts if table is not None and table.rows]
    return "\n".join([*shown, *(f"- {remark}" for remark in remarks)]) + "\n"
