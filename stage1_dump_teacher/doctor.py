"""`doctor`: looks at a machine and a user's files before hours are spent on them.

Each check is a small function that returns a `Check`; what a check imports it imports itself, so that a package that is
missing or broken shows up as a line of the table and not as a traceback.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from common.base.command_options import (
    TEACHER_CONFIG,
    cache_option,
    config_option,
    device_option,
    gathered,
    optional_data_option,
    path_type,
)
from common.base.errors import PolarDistillError
from common.base.text import command_line, count_text, size_text
from stage1_dump_teacher.device_checks import (
    Check,
    check_copies,
    check_device,
    check_segment_max,
    check_spconv,
    check_torch_scatter,
)
from stage1_dump_teacher.package_checks import check_packages, check_python, check_zarr

DATASET = Path("configs/datasets/semantic_kitti.yaml")

FULL_BYTES, TRAIN_BYTES = 22.0e6, 2.5e6
"""One scan-view in the profiles `full` and `train`, about: real scans, full-size teacher that has learned a little."""

SEMANTIC_KITTI_SCANS = 23_201
"""Scans of the training and validation sequences of SemanticKITTI."""

LISTED_SEQUENCES = 30

COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


class Comparing(NamedTuple):
    """What the doctor compares scans with, and the files that get what it measured and its picture."""

    reference: Path | None
    write_reference: Path | None
    picture: Path | None


comparing_options = gathered(
    "comparing",
    Comparing,
    click.option(
        "--reference",
        type=path_type,
        help="What the teacher was trained on: a YAML file that --write-reference wrote. Default: trained_on.yaml "
        "beside the teacher, else SemanticKITTI.",
    ),
    click.option("--write-reference", type=path_type, metavar="FILE.yaml", help="Keep what was measured of the scans."),
    click.option("--picture", type=path_type, metavar="FILE.png", help="Draw the scans beside what the teacher knows."),
)


@click.command()
@optional_data_option
@click.option("--teacher", type=path_type, help="The teacher's checkpoint.")
@config_option
@cache_option
@click.option(
    "--dataset",
    type=path_type,
    help="YAML file with the dataset's format and classes, or its name.  [default: that of --config]",
)
@comparing_options
@device_option
def doctor(
    data: Path | None,
    teacher: Path | None,
    config: Path,
    cache: str,
    dataset: Path | None,
    comparing: Comparing,
    device: str,
) -> None:
    """Check this machine and, where they are given, the scans, the teacher and the cache. Fails on any problem.

    Scans are measured and compared with those that the teacher was trained on; a note says where they differ, and what
    to do (docs/doctor.md). The kind of the teacher and the grid are those of the settings of the dump (--config).

    \b
    Examples:
      polar-distill doctor
      polar-distill doctor --data dataset --teacher cylinder3d.pt --picture scans.png
      polar-distill doctor --data recordings --dataset my_sensor.yaml
    """
    dataset, results = dataset or dataset_of(config), {}
    for name, check in checks(data, teacher, cache, dataset, config, device):
        results[name] = show(name, run_check(check))
    if data is not None:
        for name, result in about_scans(data, dataset, config, teacher, comparing):
            # Scans that cannot be listed have been reported.
            if result.finding != results["scans"].finding:
                results[name] = show(name, result)
    problems = sum(result.status == "problem" for result in results.values())
    click.echo(f"{count_text(problems, 'problem') if problems else 'No problems'} found.")
    if problems:
        raise click.exceptions.Exit(1)


def checks(
    data: Path | None,
    teacher: Path | None,
    cache: str,
    dataset: Path,
    config: Path = TEACHER_CONFIG,
    device: str = "auto",
) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Names and checks, in the order of the table."""
    yield "python", check_python
    yield "packages", check_packages
    yield "device", lambda: check_device(device)
    yield "spconv", lambda: check_spconv(device)
    yield "copies", lambda: check_copies(device)
    yield "segment max", check_segment_max
    yield "torch-scatter", check_torch_scatter
    yield "zarr", check_zarr
    if "://" not in cache:
        yield "disk", lambda: check_disk(Path(cache), data, dataset)
    if data is not None:
        yield "scans", lambda: check_data(data, dataset)
    if teacher is not None:
        yield "teacher", lambda: check_teacher(teacher, config, dataset)


def dataset_of(config: Path) -> Path:
    """The dataset of the settings of the dump; where they cannot be used, which other checks say, SemanticKITTI."""
    try:
        from stage1_dump_teacher.command_options import load_dump_settings

        return load_dump_settings(config, ()).dataset
    except Exception:
        return DATASET


def about_scans(
    data: Path, dataset: Path, config: Path, teacher: Path | None, comparing: Comparing
) -> Iterator[tuple[str, Check]]:
    """Lines of the table that compare scans with those that the teacher was trained on."""
    try:
        from common.scans.dataset import open_dataset
        from stage1_dump_teacher.command_options import load_dump_settings
        from stage1_dump_teacher.data_checks.looking import look, reference_of

        grid = load_dump_settings(config, (f"dataset={dataset}",)).grid
        reference = reference_of(teacher, comparing.reference)
        yield from look(open_dataset(data, dataset), grid, reference, comparing.picture, comparing.write_reference)
    except Exception as error:
        yield "comparison", as_problem(error)


def show(name: str, result: Check) -> Check:
    """Print a line of the table."""
    click.echo(f"{click.style(f'{result.status:<8}', fg=COLOURS[result.status])} {name:<14} {result.finding}")
    if result.next_step:
        click.echo(f"{'':<23} -> {result.next_step}")
    return result


def run_check(check: Callable[[], Check]) -> Check:
    """The check's result; whatever it raises becomes a problem."""
    try:
        return check()
    except Exception as error:
        return as_problem(error)


def as_problem(error: Exception) -> Check:
    """What a check raised, as a line of the table."""
    if isinstance(error, PolarDistillError):
        return Check("problem", error.message)
    return Check(
        "problem",
        f"{type(error).__name__}: {error}",
        "Install the program in a new environment; if that does not help, report it.",
    )


def check_disk(cache: Path, data: Path | None, dataset: Path = DATASET) -> Check:
    """There is room for a dump of the scans in `data`, or else of SemanticKITTI."""
    existing = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check("problem", f"{existing} is not a folder that can be written to", "Name another --cache.")
    scans = SEMANTIC_KITTI_SCANS if data is None else count_scans(data, dataset)
    what = f"{scans} scans" if data is not None else f"SemanticKITTI ({scans} scans)"
    least, most = scans * TRAIN_BYTES, scans * FULL_BYTES
    written = sum(path.stat().st_size for path in cache.rglob("*.zip")) if cache.is_dir() else 0
    room = shutil.disk_usage(existing).free + written
    finding = (
        f"{size_text(room - written)} free at {existing}; one view of {what} takes about {size_text(most)} "
        f"(profile full) or {size_text(least)} (profile train)"
    )
    if written:
        finding += f"; {size_text(written)} are written"
    if room >= most:
        return Check("ok", finding)
    if room >= least or data is None:
        return Check("note", finding, "Free some space, name another --cache, or dump with --set profile=train.")
    return Check("problem", finding, "Name another --cache, or dump fewer sequences.")


def count_scans(data: Path, dataset: Path) -> int:
    """Scans below a folder; 0 where they cannot be listed, of which `check_data` says why."""
    from common.scans.dataset import open_dataset

    try:
        files = open_dataset(data, dataset).files
        return len(files.scans(files.sequences()))
    except PolarDistillError:
        return 0


def check_data(data: Path, dataset: Path) -> Check:
    """The scans are where they should be, and the first one with labels can be read through the label map."""
    from common.scans.dataset import open_dataset

    opened = open_dataset(data, dataset)
    try:
        sequences = opened.files.sequences()
        scans = opened.files.scans(sequences)
    except PolarDistillError as error:
        next_step = f"Another dataset is named with --dataset; files of your own: {command_line('new-dataset', data)}"
        return Check("problem", error.message, next_step)
    without = set(opened.unlabelled(scans))
    first = next((scan for scan in scans if scan not in without), scans[0])
    read = opened.read(first)
    finding = f"{len(scans)} scans, {len(scans) - len(without)} with labels"
    counts = Counter(scan.sequence for scan in scans)
    finding += "".join(f"; {sequence}: {counts[sequence]}" for sequence in sequences[:LISTED_SEQUENCES])
    finding += f"; and {len(sequences) - LISTED_SEQUENCES} more" if len(sequences) > LISTED_SEQUENCES else ""
    finding += f"; {first} has {len(read.points)} points"
    missing = opened.files.not_on_disk(sequences)
    if missing:
        finding += f"; {len(missing):,} more are not on this disk, the first is {missing[0]}"
        return Check("note", finding, "Where that is not meant, complete the download.")
    if read.labels is None:
        return Check("note", finding, "Without labels a student learns from the teacher alone and cannot be evaluated.")
    return Check("ok", f"{finding} of {len(np.unique(read.labels))} classes")


def check_teacher(teacher: Path, config: Path = TEACHER_CONFIG, dataset: Path = DATASET) -> Check:
    """The checkpoint loads completely into the teacher that the settings of the dump name, and has the classes."""
    import torch

    from common.scans.label_map import load_label_map
    from stage1_dump_teacher.command_options import load_dump_settings
    from stage1_dump_teacher.teachers.loading import load_named_teacher

    settings = load_dump_settings(config, (f"dataset={dataset}",))
    loaded = load_named_teacher(settings.teacher, teacher, torch.device("cpu"))
    loaded = loaded.for_dataset(load_label_map(settings.dataset))
    layers = ", ".join(f"{name} {channels}" for name, channels in loaded.channels.items()) or "none"
    return Check("ok", f"{settings.teacher} {loaded}; {loaded.classes} classes; channels of its layers: {layers}")
