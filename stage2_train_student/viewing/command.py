"""The command that shows scans in 3D."""

from pathlib import Path

import click

from common.base.command_options import device_option, optional_data_option, path_type
from common.base.devices import select_device
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from stage2_train_student.command_options import file_option
from stage2_train_student.predictor import Predictor
from stage2_train_student.training.runs import run_settings


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
    # Imported here: they need matplotlib, which takes a second to load.
    from stage2_train_student.evaluation.picture_sources import cached_teacher, live_teacher
    from stage2_train_student.viewing import scans as viewing
    from stage2_train_student.viewing.page import page

    student = Predictor.load(run, device)
    label_map, targets = student.label_map, None
    if data is None:
        chosen = viewing.file_scans(map(Path, scans), label_map, file_options)
    else:
        dataset = Dataset.open(data, label_map)
        chosen = iter([viewing.NamedScan(str(scan), dataset, scan) for scan in map(ScanId.parse, scans)])
    if teacher is not None:
        live = load_teacher(run_settings(run).teacher, teacher, select_device(device))
        targets = live_teacher(live, [], label_map)
    elif cache is not None:
        targets = cached_teacher(cache, [], student.model.grid, label_map)
    viewed = viewing.viewed_scans(chosen, student, targets)
    path = out or run / "view.html"
    write_atomically(path, page(str(run), viewed, label_map).encode())
    click.echo(f"{len(viewed)} scans, {path.stat().st_size / 1e6:.1f} MB: {path}   open it in a browser")
