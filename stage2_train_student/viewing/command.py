"""The command that shows scans in 3D: the scans themselves, and what student and teacher say about them."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np

from common.base.command_options import device_option, optional_data_option, path_type
from common.base.devices import select_device
from common.base.errors import DataError, SettingsError
from common.base.files import check_replaceable, write_atomically
from common.base.text import count_text, shortened
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from stage2_train_student.command_options import file_option
from stage2_train_student.evaluation.own_files import own_scans
from stage2_train_student.predictor import Predictor
from stage2_train_student.training.runs import run_settings
from stage2_train_student.viewing.page import Opinion, ViewedScan, page

if TYPE_CHECKING:
    from stage2_train_student.evaluation.picture_sources import ScanTargets

OF_A_BAG = 10
"""Clouds of a bag that are shown, spread over it: each makes the page 2 MB larger."""


@click.command()
@click.argument("run", type=path_type)
@click.argument("scans", nargs=-1, required=True, metavar="SCAN...")
@optional_data_option
@click.option("--teacher", type=path_type, help="Teacher checkpoint to run on the scans.")
@click.option("--cache", help="Target store to take what the teacher says from instead; needs --data.")
@file_option
@click.option("--out", type=path_type, help="The page.  [default: view.html in RUN]")
@device_option
@click.pass_obj
def view(
    load_teacher: TeacherLoader,
    run: Path,
    scans: tuple[str, ...],
    data: Path | None,
    teacher: Path | None,
    cache: str | None,
    file_options: tuple[str, ...],
    out: Path | None,
    device: str,
) -> None:
    """Show scans in 3D on one page that any browser opens, without a network or a server.

    The page colours points by truth, student, teacher, errors, confidence, reflectance and height, and names the point
    under the pointer. RUN is the folder of a training run. SCANs are files, folders and bags; with --data they are
    names of scans such as 08/000000.

    \b
    Examples:
      polar-distill view runs/full --data dataset 08/000000 08/000100 --cache cache/val
      polar-distill view runs/full drive.mcap --file-option reflectance_scale=0.00392
    """
    if teacher is not None and cache is not None:
        raise SettingsError("--teacher and --cache both say where the teacher's targets come from; give one of them")
    if cache is not None and data is None:
        raise SettingsError("--cache holds what a teacher said about scans of a dataset: name it with --data")
    if data is not None and file_options:
        raise SettingsError("--file-option is for files, not for scans of a dataset (--data)")
    # Imported here: it needs matplotlib, which takes a second to load.
    from stage2_train_student.evaluation.picture_sources import cached_teacher, live_teacher

    student = Predictor.load(run, device)
    label_map, targets = student.label_map, None
    if data is None:
        paths = [path_type.convert(scan, None, None) for scan in scans]
        chosen = file_scans(paths, label_map, file_options)
    else:
        dataset = Dataset.open(data, label_map)
        chosen = iter([NamedScan(str(scan), dataset, scan) for scan in map(ScanId.parse, scans)])
    if teacher is not None:
        live = load_teacher(run_settings(run).teacher, teacher, select_device(device))
        targets = live_teacher(live, [], label_map)
    elif cache is not None:
        targets = cached_teacher(cache, [], student.model.grid, label_map)
    path = out or run / "view.html"
    check_replaceable(path)
    viewed = viewed_scans(chosen, student, targets)
    write_atomically(path, page(str(run), viewed, label_map).encode())
    scan_count = count_text(len(viewed), "scan")
    click.echo(f"{scan_count}, {path.stat().st_size / 1e6:.1f} MB: {path}   open it in a browser")


class NamedScan(NamedTuple):
    """A scan, and what the page calls it."""

    name: str
    dataset: Dataset
    scan: ScanId


def file_scans(paths: Iterable[Path], label_map: LabelMap, overrides: Iterable[str]) -> Iterator[NamedScan]:
    """Scans of files and folders, and some of each bag, see `own_scans`."""
    for found in own_scans(paths, label_map, overrides):
        scans = found.scans
        if found.bag is not None:
            rows = np.linspace(0, len(scans) - 1, min(len(scans), OF_A_BAG)).astype(int)
            scans = [scans[row] for row in rows]
        for scan in scans:
            yield NamedScan(found.title(scan), found.dataset, scan)


def viewed_scans(scans: Iterable[NamedScan], student: Predictor, teacher: "ScanTargets | None") -> list[ViewedScan]:
    """What there is to show about scans; those without points are left out, with a note.

    Raises:
        DataError: one cannot be read, or none has points.
        StoreError: the teacher's targets come from a store that does not have them.
    """
    found = [viewed_scan(named, student, teacher) for named in scans]
    empty = [scan.name for scan in found if not len(scan.points)]
    if len(empty) == len(found):
        raise DataError(f"{shortened(empty)}: nothing came back in these scans, so there is nothing to show.")
    if empty:
        click.echo(f"note: left out, since nothing came back: {shortened(empty)}", err=True)
    return [scan for scan in found if len(scan.points)]


def viewed_scan(named: NamedScan, student: Predictor, teacher: "ScanTargets | None") -> ViewedScan:
    """What there is to show about a scan; for errors see `viewed_scans`."""
    source = named.dataset.read(named.scan)
    opinions = [opinion("student", student, source.points)]
    if teacher is not None:
        model = replace(student.model, logits=lambda batch: teacher(named.scan, source.points, batch).logits)
        opinions.append(opinion("teacher", replace(student, model=model), source.points))
    return ViewedScan(named.name, source.points, source.labels, opinions)


def opinion(who: str, predictor: Predictor, points: np.ndarray) -> Opinion:
    """What somebody says about the points of a scan."""
    classes, probabilities = predictor.predict(points)
    return Opinion(who, classes, probabilities.max(axis=1))
