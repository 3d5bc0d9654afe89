"""Commands that look after a target store: info, verify; and what they share with repair."""

import json
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

import click
import torch
from tqdm import tqdm

from common.base.command_options import cache_option, device_option, optional_data_option, teachers_option
from common.base.devices import select_device, set_float32_precision
from common.base.errors import SettingsError, StoreError
from common.base.text import count_text
from common.scans.dataset import Dataset, open_dataset
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId
from common.targets.store import ScanView, TargetStore
from common.targets.store.contents import contents
from common.targets.store.maintenance import Problem, absent, inspect_all, leftovers, sample, source_hashes
from common.targets.store.skipped import read_skipped
from common.targets.teacher import Precision
from stage1_dump_teacher.command_options import settings_options, threads_option
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care import reports
from stage1_dump_teacher.store_care.live_check import AGREEMENT, compare_live, worst
from stage1_dump_teacher.teachers.loading import load_teachers


@click.command()
@cache_option
@optional_data_option
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(cache: str, data: Path | None, settings: DumpSettings, as_json: bool) -> None:
    """Say what is in a store: what made it, which scans, what its arrays weigh; with --data, what is missing.

    \b
    Examples:
      polar-distill info
      polar-distill info --cache cache/train --data dataset --set splits=[train]
      polar-distill info --cache s3://bucket/prefix --json
    """
    store = TargetStore.open(cache)
    found, finished = contents(store), store.finished()
    skipped, parts = read_skipped(store, finished), [reports.contents_lines(store, found)]
    missing: reports.MissingBySequence | None = None
    if skipped:
        parts.append(reports.skipped_lines(skipped))
    if data is not None:
        scans, views = open_dataset(data, settings.dataset).select(settings.splits).scans, store.identity.views.count
        missing = {scan.sequence: [] for scan in scans}
        for scan, view in product(scans, range(views)):
            if (scan, view) not in finished:
                missing[scan.sequence].append((scan, view))
        mean_size = found.total.size / max(found.total.scan_views, 1)
        parts.append(reports.missing_lines(missing, len(scans) * views, mean_size))
    unfinished = 0 if as_json else len(leftovers(store))
    if unfinished:
        parts.append([f"{count_text(unfinished, 'half-written file')} of crashed dumps: repair removes them."])
    if as_json:
        click.echo(json.dumps(reports.contents_json(store, found, missing, skipped), indent=1))
    else:
        click.echo("\n\n".join("\n".join(lines) for lines in parts))


@click.command()
@cache_option
@click.option("--sample", "count", type=click.IntRange(min=1), metavar="N", help="Check N random scan-views only.")
@click.option("--seed", default=0, help="Of the random choices.")
@optional_data_option
@click.option("--live", type=click.IntRange(min=1), metavar="N", help="Run the teacher again on N random scan-views.")
@teachers_option(required=False, help="Checkpoint that the store was dumped with; repeatable.")
@settings_options
@device_option
@threads_option
def verify(
    cache: str,
    count: int | None,
    seed: int,
    data: Path | None,
    live: int | None,
    teachers: tuple[Path, ...],
    settings: DumpSettings,
    device: str,
    threads: int,
) -> None:
    """Check every checksum and all contents of a store; exit with status 1 if anything is wrong.

    With --data, also notice scans that have changed since the teacher saw them. With --live, --data and --teacher, run
    the teacher again and compare: differences beyond what the encoding explains are errors. Of the settings of the dump
    (--config, --set) the dataset, for the format of its scans, and the kind of the teacher are used.

    \b
    Examples:
      polar-distill verify --cache cache/train
      polar-distill verify --cache cache/train --sample 200 --data dataset
      polar-distill verify --cache cache/train --live 3 --data dataset --teacher teacher.pt
      polar-distill verify --cache cache/mine --data dataset --config my_dump.yaml
    """
    if live is not None and (data is None or not teachers):
        raise SettingsError("--live runs the teacher on scans: it needs --data and --teacher")
    store = TargetStore.open(cache)
    dataset = None if data is None else open_dataset(data, settings.dataset)
    files, finished = None if dataset is None else dataset.files, store.finished()
    chosen = sorted(finished) if count is None else sample(list(finished), count, seed)
    skipped = read_skipped(store, finished)
    missing = absent(store, finished, expected_scans(files, finished))
    problems = [problem for problem in missing if problem.scan_view not in skipped]
    problems += inspected(store, chosen, files, threads)
    for line in reports.problem_lines(problems):
        click.echo(line)
    checked = f"{len(chosen):,} of {count_text(len(finished), 'scan-view')} checked"
    click.echo(f"{checked}: {count_text(len(problems), 'problem') if problems else 'nothing wrong'}")
    if skipped:
        click.echo("\n".join(reports.skipped_lines(skipped)))
    if problems:
        click.echo("The command repair deletes what is wrong and dumps it, and what is missing, again.")
    failed = bool(problems)
    if live is not None and dataset is not None:
        bad = {problem.scan_view for problem in problems}
        usable = sample([item for item in finished if item not in bad], live, seed)
        if not usable:
            raise StoreError(f"{store.location}: holds no whole scan-view to run the teacher on.")
        failed |= not compare_with_teacher(store, settings, teachers, dataset, usable, select_device(device))
    if failed:
        raise click.exceptions.Exit(1)


def inspected(store: TargetStore, items: list[ScanView], files: ScanFiles | None, threads: int) -> list[Problem]:
    """Problems of scan-views that are in a store, with a progress bar; says what could not be found out."""
    hashes = None if files is None else source_hashes(files, expected_scans(files, items))
    # Views beyond those of the store are foreign whatever they hold.
    items = [item for item in items if item[1] < store.identity.views.count]
    found = tqdm(inspect_all(store, items, hashes, threads), total=len(items), unit="scan", desc="verify", leave=False)
    problems = [problem for problem in found if problem is not None]
    unsigned = sum(problem.is_note for problem in problems)
    if unsigned:
        click.echo(
            f"note       {count_text(unsigned, 'scan file')} of an earlier version without the hash of the store's "
            "identity: volume and policy of views could not be compared"
        )
    return [problem for problem in problems if not problem.is_note]


def expected_scans(files: ScanFiles | None, finished: Iterable[ScanView]) -> list[ScanId]:
    """Scans that a store should hold: all on disk of the sequences that it holds any scan of; none without files."""
    if files is None:
        return []
    held = {scan.sequence for scan, _ in finished} & set(files.sequences())
    return files.scans(sorted(held)) if held else []


def compare_with_teacher(
    store: TargetStore,
    settings: DumpSettings,
    checkpoints: Sequence[Path],
    dataset: Dataset,
    items: list[ScanView],
    device: torch.device,
) -> bool:
    """Run the teacher on some scan-views and print how far the store is from it; returns whether that is explained.

    It runs in the store's precision, where the device has it, and in float32.
    """
    identity, stored, explained = store.identity, store.identity.precision, True
    shares = identity.averaged.values()
    averaging = {
        "views_averaged": max((share.views for share in shares), default=1),
        "teacher_weights": [share.weight for share in shares] if len(shares) > 1 else [],
    }
    precisions: list[Precision] = ["float32"] if device.type == "cpu" else list(dict.fromkeys((stored, "float32")))
    for precision in precisions:
        set_float32_precision(tf32=precision == "tf32")
        as_stored = settings.model_copy(update=averaging | {"precision": precision})
        teacher = load_teachers(as_stored, checkpoints, dataset.label_map, identity.polar_grid, device)
        compared = compare_live(store, teacher, dataset.files, items, device)
        errors = worst(tqdm(compared, total=len(items), unit="scan", desc="live", leave=False))
        if stored != "float32":
            within = f"within {AGREEMENT[stored]:.0e} of float32"
            click.echo(f"The store is in {stored} ({within}), the teacher in {precision}.")
        click.echo("\n".join(reports.live_lines(errors, items)))
        explained &= all(error.explained for error in errors)
    return explained
