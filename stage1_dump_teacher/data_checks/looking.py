"""The doctor's look at scans: measured, compared with what the teacher was trained on, drawn; and a grid that fits."""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import yaml

from common.base.config import load_settings
from common.base.files import write_atomically
from common.scans.dataset import Dataset, GridSettings, evenly
from common.scans.file_pattern import FilePattern
from common.scans.formats.files import SensorFiles
from common.scans.formats.semantic_kitti import SemanticKitti, scan_path
from common.scans.readers.extras import unreadable
from common.scans.scan_id import ScanId
from stage1_dump_teacher.data_checks.columns import contradicted
from stage1_dump_teacher.data_checks.judgement import Line, judged
from stage1_dump_teacher.data_checks.survey import SAMPLED_SCANS, Measured, Survey, measure
from stage1_dump_teacher.data_checks.volume import fitting_grid, grid_lines
from stage1_dump_teacher.device_checks import Check

PUBLISHED = Path("semantic_kitti")
"""What published teachers were trained on: a file in configs/references/."""

TRAINED_ON = "trained_on.yaml"
"""The same of a teacher of one's own, beside its checkpoint."""


def reference_of(teacher: Path | None, named: Path | None = None) -> Survey:
    """What a teacher was trained on: the file that is named, that beside its checkpoint, or what published ones saw.

    Raises:
        SettingsError: it cannot be used.
    """
    beside = None if teacher is None else teacher.parent / TRAINED_ON
    own = beside if beside is not None and beside.is_file() else PUBLISHED
    return load_settings(Survey, named or own)


def look(
    dataset: Dataset, grid: GridSettings, reference: Survey, picture: Path | None = None, kept: Path | None = None
) -> Iterator[Line]:
    """Lines of the doctor's table about scans.

    Args:
        dataset: the scans.
        grid: that they are put on.
        reference: what the teacher was trained on.
        picture: PNG file that gets the picture.
        kept: YAML file that gets what was measured.

    Raises:
        DataError: no scan can be used at all.
    """
    scans = dataset.files.scans(dataset.files.sequences())
    columns = check_columns(dataset, scans[0])
    if columns is not None:
        yield "columns", columns
        if columns.status == "problem":
            return
    measured, found = surveyed(dataset, scans, grid)
    yield "compared", Check("ok", f"{measured.scans} of the scans with the teacher's: {reference.source}")
    if measured.refused:
        text = f"{len(measured.refused)} of {measured.scans + len(measured.refused)} scans cannot be read"
        yield "reading", Check("problem", f"{text}, the first: {measured.refused[0]}")
    yield from judged(found, reference, dataset.label_map)
    if kept is not None:
        write_survey(found, kept)
        yield "reference", Check("ok", f"written to {kept}")
    if picture is not None:
        from stage1_dump_teacher.data_checks.picture import draw_survey

        draw_survey(measured.kept[len(measured.kept) // 2], found, reference, grid, picture)
        yield "picture", Check("ok", str(picture))
    say_grid(measured, found)


def surveyed(dataset: Dataset, scans: list[ScanId], grid: GridSettings) -> tuple[Measured, Survey]:
    """Measure up to fifty of some scans.

    Raises:
        DataError: none of them can be used.
    """
    measured = measure(dataset, evenly(scans, SAMPLED_SCANS), grid.grid())
    return measured, measured.summary(grid, f"{dataset.label_map.name}, {measured.scans} of {len(scans)} scans")


def write_survey(survey: Survey, path: Path) -> None:
    """Write a survey, so that `reference_of` reads it back."""
    values = survey.model_dump(mode="json")
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    write_atomically(path, text.encode())


def say_grid(measured: Measured, found: Survey) -> None:
    """Print a grid that fits the scans, ready to paste."""
    fitting, share = fitting_grid(np.concatenate(measured.kept), found.ground)
    click.echo(
        f"\nA grid whose volume holds {share:.1%} of these points, for the settings of train-teacher, the dump and\n"
        "experiments alike; a published checkpoint needs the one that it was trained on:"
    )
    click.echo("\n".join(f"  {line}" for line in grid_lines(fitting)) + "\n")


def check_columns(dataset: Dataset, scan: ScanId) -> Check | None:
    """Whether a file of bare numbers has as many columns as it is read with; None where files say it themselves."""
    files = dataset.files
    if isinstance(files, SemanticKitti):
        path, width = scan_path(files.root, scan), 4
    elif isinstance(files, SensorFiles) and files.settings.scans.endswith(".bin"):
        path, width = FilePattern(files.settings.scans).path(files.root, scan), len(files.settings.columns)
    else:
        return None
    with unreadable(path):
        data = path.read_bytes()
    other = contradicted(np.frombuffer(data[: len(data) // 4 * 4], "<f4"), width)
    if other is None:
        return Check("ok", f"{width} in each point")
    return Check(
        "problem",
        f"{path} looks like {other} numbers a point, and is read as {width}",
        "Name the columns: options.columns of the format files. polar-distill new-dataset writes such a description.",
    )
