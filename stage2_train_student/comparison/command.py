"""The command that compares training runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from common.base.command_options import device_option, gathered, path_type
from common.base.devices import select_device
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.base.text import count_text
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from stage2_train_student.comparison import experiments as grouping
from stage2_train_student.comparison import tables
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.results import Source, choose_source, differences, report_protocol, results
from stage2_train_student.comparison.training_runs import find_runs, read_run
from stage2_train_student.comparison.verdict import notes
from stage2_train_student.evaluation.evaluation_file import read_report

if TYPE_CHECKING:
    from stage2_train_student.comparison.page import Comparison
    from stage2_train_student.comparison.scan_pictures import ScanPictures


@dataclass(frozen=True)
class Drawing:
    """Which pictures of scans are asked for; without `data` none.

    Raises:
        SettingsError: scans or a teacher are named without the folder of the scans.
    """

    data: Path | None
    scan_names: tuple[str, ...]
    teacher: Path | None
    radius: float
    device: str

    def __post_init__(self) -> None:
        if self.data is None and (self.scan_names or self.teacher is not None):
            raise SettingsError("--scan and --teacher are for pictures, which need --data, the folder of the scans")

    def draw(
        self, experiments: list[Experiment], label_map: LabelMap, load_teacher: TeacherLoader
    ) -> "list[ScanPictures]":
        """Pictures of the scans that were named, or of one that the experiments are validated on."""
        if self.data is None:
            return []
        from stage2_train_student.comparison.scan_pictures import default_scan, draw_scans

        device, dataset = select_device(self.device), Dataset.open(self.data, label_map)
        named = experiments[0].settings.teacher
        live = None if self.teacher is None else load_teacher(named, self.teacher, device)
        scans = [ScanId.parse(name) for name in self.scan_names] or [default_scan(experiments, dataset)]
        return draw_scans(experiments, dataset, scans, live, device, self.radius)


drawing_options = gathered(
    "drawing",
    Drawing,
    click.option("--data", type=path_type, help="Folder of the dataset: draws a scan as every student sees it."),
    click.option(
        "--scan", "scan_names", multiple=True, help="Scan to draw, such as 08/000000; repeatable.  [default: one]"
    ),
    click.option("--teacher", type=path_type, help="Teacher checkpoint to draw as well."),
    click.option("--radius", type=click.FloatRange(min=1), default=50.0, help="Metres drawn each way."),
    device_option,
)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=path_type)
@click.option("--out", type=path_type, default=Path("comparison.html"), help="The page.")
@click.option("--title", default="Did distillation help?", help="Heading of the page.")
@click.option("--baseline", help="Experiment to measure the others against.  [default: the one without a teacher]")
@click.option(
    "--scores",
    type=click.Choice(get_args(Source)),
    help="Take IoU from each run's evaluation.json, or from its best validation.  [default: evaluation where every run "
    "has one]",
)
@click.option("--teacher-evaluation", type=path_type, help="JSON of evaluate --teacher: the teacher's mIoU is shown.")
@drawing_options
@click.pass_obj
def compare(
    load_teacher: TeacherLoader,
    folders: tuple[Path, ...],
    out: Path,
    title: str,
    baseline: str | None,
    scores: Source | None,
    teacher_evaluation: Path | None,
    drawing: Drawing,
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
    given = grouping.group_runs([read_run(folder) for folder in find_runs(list(folders))])
    label_map = grouping.one_label_map(given)
    reference = grouping.choose_baseline(given, baseline)
    source = choose_source(given, scores, label_map)
    found = results(given, reference, source, label_map)
    ordered = [result.experiment for result in found]
    comparison = Comparison(
        title=title,
        results=found,
        label_map=label_map,
        scored_on=scored_on(ordered, source),
        notes=notes(found, source, label_map),
        settings=grouping.differing_settings(ordered),
        teacher_miou=None if teacher_evaluation is None else teacher_miou(teacher_evaluation, ordered, source),
        pictures=drawing.draw(ordered, label_map, load_teacher),
        radius=drawing.radius,
    )
    write_atomically(out, page(comparison).encode())
    write_atomically(out.with_suffix(".md"), tables_text(comparison).encode())
    write_atomically(out.with_suffix(".csv"), tables.csv_text(found).encode())
    click.echo(tables.summary_table(found).markdown())
    click.echo(f"page: {out}    tables: {out.with_suffix('.md')}, {out.with_suffix('.csv')}")


def teacher_miou(path: Path, experiments: list[Experiment], source: Source) -> float | None:
    """The teacher's mIoU from a report on the same points as the runs'.

    Raises:
        SettingsError: the runs' scores are no evaluations, or on other points.
        DataError: the report cannot be read.
    """
    if source != "evaluation":
        raise SettingsError("--teacher-evaluation needs an evaluation of every run; run evaluate --run for each")
    numbers = read_report(path)
    unequal = differences(report_protocol(numbers), report_protocol(experiments[0].runs[0].evaluation or {}))
    if unequal:
        raise SettingsError(f"{path}: the teacher was not scored on the same points as the students: {unequal}")
    return None if numbers["miou"] is None else float(numbers["miou"])


def scored_on(experiments: list[Experiment], source: Source) -> str:
    """The scans that scores are about, in words."""
    run = experiments[0].runs[0]
    numbers = run.evaluation
    if source == "validation" or numbers is None:
        return f"validated on {', '.join(run.settings.validate_on) or 'nothing'}"
    views = f", {numbers['views']} views averaged" if numbers["views"] > 1 else ""
    scans = f"{count_text(numbers['scans'], 'scan')}, {count_text(numbers['points'], 'point')}"
    return f"evaluated on {', '.join(numbers['splits'])} ({scans}){views}"


def tables_text(comparison: "Comparison") -> str:
    """All tables in Markdown."""
    found = comparison.results
    names = [result.experiment.name for result in found]
    parts = [
        ("Summary", tables.summary_table(found)),
        ("IoU of each class, %", tables.class_table(found)),
        ("mIoU by distance", tables.distance_table(found)),
        ("Settings that differ", tables.settings_table(names, comparison.settings)),
    ]
    shown = [f"## {title}\n\n{table.markdown()}" for title, table in parts if table is not None and table.rows]
    return "\n".join([*shown, *(f"- {remark}" for remark in comparison.notes)]) + "\n"
