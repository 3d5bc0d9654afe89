"""Stage one: run the frozen teacher once over every scan and cache what it says."""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import click
import torch
from tqdm import tqdm

from common.base.devices import Launch, set_float32_precision, use_device
from common.base.overlap import BackgroundWriter, StageClock, started_ahead
from common.base.shards import Shard
from common.base.signals import StopRequest
from common.scans.dataset import Dataset, ScanSelection, open_dataset
from common.scans.label_map import LabelMap
from common.scans.polar_grid import check_distillable
from common.targets.store import ScanView, StoreIdentity, TargetStore
from common.targets.store.members import UnwrittenArrays
from common.targets.store.storage import FolderStorage, Storage
from common.targets.teacher import Teacher, layer_channels
from common.targets.teacher_targets import TeacherTargets, split_targets
from stage1_dump_teacher.dump_workers import threads_of, worker_processes
from stage1_dump_teacher.scan_reading import PreparedBatch, PreparedScan, ScanSource, preparer
from stage1_dump_teacher.scan_writer import DumpReport, ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.reports import averaged_lines
from stage1_dump_teacher.teachers.loading import load_teachers

BATCH_ON_GPU = 4
"""Scan-views of one pass of the teacher there: one alone is over before the next one is launched."""


def run(
    settings: DumpSettings,
    data: Path,
    checkpoints: Sequence[Path],
    cache: str | Path,
    device: torch.device,
    shard: Shard = Shard(),
) -> DumpReport:
    """Dump what is missing in `cache`, of this process's share of the scans.

    Raises:
        DataError: the dataset, or with `on_bad_scan: stop` a scan, cannot be used.
        CheckpointError: the teacher does not load completely.
        SettingsError: it has other classes than the dataset, or does not compute in the precision on this device.
        StoreError: the store belongs to something else or vanishes meanwhile, the disk is too small, or the teacher
            produced what cannot be stored (with `on_bad_scan: skip`, of no scan anything else).
    """
    dataset = open_dataset(data, settings.dataset)
    selection = dataset.select(settings.splits)
    teacher, store = teacher_and_store(settings, dataset, checkpoints, cache, device)
    finished = store.finished()
    work = shard.of([(scan, view) for scan in selection.scans for view in range(settings.views.count)])
    missing = [item for item in work if item not in finished]
    announce(teacher, store, selection, len(missing), device, shard)
    source = ScanSource(settings, dataset)
    helpers = worker_processes(source, store, device) if missing else nullcontext((None, None))
    with helpers as (reading, writing):
        writer = ScanWriter(store, settings.on_bad_scan == "skip", writing)
        writer.expected, writer.report.present = len(missing), len(work) - len(missing)
        prepare = preparer(source, device, teacher, reading)
        writer.report.left = len(dump_missing(writer, teacher, missing, settings, prepare, device))
    writer.check_all_there(finished.intersection(work))
    return writer.report


def teacher_and_store(
    settings: DumpSettings,
    dataset: Dataset,
    checkpoints: Sequence[Path],
    cache: str | Path | Storage,
    device: torch.device,
) -> tuple[Teacher, TargetStore]:
    """The teacher, and the store that gets its targets; for errors see `run`."""
    grid = settings.grid.grid()
    check_distillable(grid.shape)
    settings.grid.check_fits(dataset.label_map)
    set_float32_precision(tf32=settings.precision == "tf32")
    teacher = load_teachers(settings, checkpoints, dataset.label_map, grid, device)
    return teacher, TargetStore.create_or_resume(cache, identity_of(settings, teacher, dataset.label_map))


def dump_missing(
    writer: ScanWriter,
    teacher: Teacher,
    missing: list[ScanView],
    settings: DumpSettings,
    prepare: Callable[[list[ScanView]], PreparedBatch],
    device: torch.device,
) -> list[ScanView]:
    """Read ahead, run the teacher and write behind, some scan-views after others, until all is done or Ctrl-C.

    On a GPU this thread launches the teacher and the encoding of its targets, and waits for the end of a pass in
    between: other threads, or processes for them, read, wait for what is encoded, and write.

    Returns:
        scan-views that are left after Ctrl-C.
    """
    use_device(device)
    kept = writer.store.identity
    progress = tqdm(total=len(missing), unit="scan", desc="dump-teacher", disable=not missing)
    readers, writers = threads_of(settings, device, isinstance(writer.store.storage, FolderStorage))
    clock = StageClock({"reading": readers, "teacher": 1, "writing": max(writers, 1)})

    def read(items: list[ScanView]) -> PreparedBatch:
        with clock.measure("reading", len(items)):
            return prepare(items)

    def write(scans: list[PreparedScan], encodings: list[Callable[[], UnwrittenArrays]], launch: Launch) -> None:
        clock.add("teacher", launch.wait(), len(scans))
        with clock.measure("writing", len(scans)):
            for scan, encoded in zip(scans, encodings, strict=True):
                writer.write(*scan.item, encoded)

    # Targets wait in memory: few more of them than there are threads.
    background = BackgroundWriter(depth=writers + 2 if writers else 0, threads=max(writers, 1))
    together = settings.batch_size or (1 if device.type == "cpu" else BATCH_ON_GPU)
    batches = [missing[start : start + together] for start in range(0, len(missing), together)]
    ahead = closing(started_ahead(read, batches, max(settings.read_ahead, readers), readers))
    done = 0
    with progress, StopRequest() as stop, background as behind, ahead as started:
        for items, future in started:
            prepared = future.result()
            for item, error in prepared.refused:
                writer.pass_over(*item, error)
            if prepared.batch is not None:
                with Launch(device) as launch:
                    targets = teacher.targets(prepared.batch, list(kept.layers), kept.voxel_features)
                    parts = split_targets(targets, len(prepared.scans))
                    pairs = zip(prepared.scans, parts, strict=True)
                    encodings = [encoding_of(scan, part, writer.store) for scan, part in pairs]
                behind.submit(write, prepared.scans, encodings, launch)
            done += len(items)
            progress.set_postfix_str(f"slowest={clock.slowest}", refresh=False)
            progress.update(len(items))
            if stop:
                break
    return missing[done:]


def encoding_of(scan: PreparedScan, targets: TeacherTargets, store: TargetStore) -> Callable[[], UnwrittenArrays]:
    """What gives the encoded targets of a scan-view: launched at once on a GPU, left to who asks on a CPU."""
    start = partial(store.start_encoding, *scan.item, scan.view, targets, scan.sha256)
    return start() if targets.logits.is_cuda else lambda: start()()


def identity_of(settings: DumpSettings, teacher: Teacher, label_map: LabelMap) -> StoreIdentity:
    """What the store will say made it. Of a teacher without layers it keeps the logits alone."""
    layers = layer_channels(teacher, settings.layers if teacher.channels else ())
    return StoreIdentity.of(
        teacher_hash=teacher.hash,
        grid=settings.grid.grid(),
        label_map=label_map,
        layers=layers,
        voxel_features=settings.voxel_features and bool(layers),
        encoding=settings.encoding,
        views=settings.views,
        precision=settings.precision,
        averaged=teacher.shares,
    )


def announce(
    teacher: Teacher | str,
    store: TargetStore,
    selection: ScanSelection,
    missing: int,
    device: torch.device | str,
    shard: Shard = Shard(),
) -> None:
    """Say what is about to happen."""
    identity, layers = store.identity, ", ".join(store.identity.layers) or "none, logits only"
    click.echo(f"teacher  {teacher} on {device}")
    click.echo(f"cache    {store.location}  views per scan: {identity.views.count}  layers: {layers}")
    for line in averaged_lines(identity):
        click.echo(f"average  {line}")
    if identity.averaged:
        passes = sum(share.views for share in identity.averaged.values())
        click.echo(f"cost     {passes} answers of a teacher for each scan-view, {passes * missing:,} in all")
    click.echo(f"scans    {len(selection.scans)}; {missing} scan-views to dump in shard {shard}")
    for note in selection.notes:
        click.echo(f"note     {note}")
