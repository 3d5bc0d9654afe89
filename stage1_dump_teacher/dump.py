"""Stage one: run the frozen teacher once over every scan and cache what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from tqdm import tqdm

from common.base.errors import DataError
from common.base.overlap import BackgroundWriter, started_ahead
from common.base.shards import Shard
from common.base.signals import StopRequest
from common.scans.dataset import Dataset, LabelledScan, open_dataset, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid, VoxelisedScan, check_distillable
from common.scans.scan_batch import batch_scans
from common.scans.view import View
from common.targets.store import ScanView, StoreIdentity, TargetStore
from common.targets.store.storage import FolderStorage
from common.targets.teacher import Teacher, check_classes, layer_channels
from stage1_dump_teacher.scan_writer import DumpReport, ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.loading import load_named_teacher


@dataclass(frozen=True)
class PreparedScan:
    """A scan in one view, ready for the teacher."""

    source: LabelledScan
    view: View
    voxelised: VoxelisedScan


def run(
    settings: DumpSettings,
    data: Path,
    checkpoint: Path,
    cache: str | Path,
    device: torch.device,
    shard: Shard = Shard(),
) -> DumpReport:
    """Dump what is missing in `cache`, of this process's share of the scans.

    Raises:
        DataError: the dataset, or with `on_bad_scan: stop` a scan, cannot be used.
        CheckpointError: the teacher does not load completely.
        SettingsError: it has other classes than the dataset.
        StoreError: the store belongs to something else or vanishes meanwhile, the disk is too small, or the teacher
            produced what cannot be stored (with `on_bad_scan: skip`, of no scan anything else).
    """
    dataset = open_dataset(data, settings.dataset)
    scans, notes = dataset.select(settings.splits)
    teacher, store = teacher_and_store(settings, dataset, checkpoint, cache, device)
    finished = store.finished()
    work = shard.of([(scan, view) for scan in scans for view in range(settings.views.count)])
    missing = [item for item in work if item not in finished]
    announce(teacher, store, len(scans), notes, len(missing), device, shard)
    report = DumpReport(present=len(work) - len(missing))
    writer = ScanWriter(store, report, len(missing), settings.on_bad_scan == "skip")
    dump_missing(writer, teacher, missing, settings, preparer(settings, dataset, settings.grid.grid()), device)
    writer.check_all_there(finished.intersection(work))
    return report


def teacher_and_store(
    settings: DumpSettings, dataset: Dataset, checkpoint: Path, cache: str | Path, device: torch.device
) -> tuple[Teacher, TargetStore]:
    """The teacher, and the store that gets its targets; for errors see `run`."""
    grid = settings.grid.grid()
    check_distillable(grid.shape)
    teacher = load_named_teacher(settings.teacher, checkpoint, device)
    check_classes(teacher, dataset.label_map)
    return teacher, TargetStore.create_or_resume(cache, identity_of(settings, teacher, grid, dataset.label_map))


def dump_missing(
    scan_writer: ScanWriter,
    teacher: Teacher,
    missing: list[ScanView],
    settings: DumpSettings,
    prepare: Callable[[ScanView], PreparedScan],
    device: torch.device,
) -> None:
    """Read ahead, run the teacher and write behind, one scan-view after another, until all is done or Ctrl-C."""
    progress = tqdm(total=len(missing), unit="scan", desc="dump-teacher", disable=not missing)
    # On a CPU the teacher uses every core; encoding beside it would only slow it down, waiting for a network would not.
    waits = device.type != "cpu" or not isinstance(scan_writer.store.storage, FolderStorage)
    with progress, StopRequest() as stop, BackgroundWriter(depth=2 if waits else 0) as writer:
        for (scan, index), future in started_ahead(prepare, missing, settings.read_ahead):
            try:
                prepared = future.result()
            except DataError as error:
                scan_writer.pass_over(scan, index, error)
                progress.update()
                continue
            batch = batch_scans([prepared.voxelised], settings.grid.shape).to(device)
            targets = teacher.targets(batch, settings.layers, settings.voxel_features).to("cpu")
            writer.submit(scan_writer.write, scan, index, prepared.view, targets, prepared.source.points)
            progress.update()
            if stop:
                break
    report = scan_writer.report
    report.left = len(missing) - report.written - len(report.skipped)


def preparer(settings: DumpSettings, dataset: Dataset, grid: PolarGrid) -> Callable[[ScanView], PreparedScan]:
    """A function that reads and voxelises one scan-view."""

    def prepare(item: ScanView) -> PreparedScan:
        scan, index = item
        source = dataset.read(scan)
        view = settings.views.view(scan, index, grid.shape[1])
        return PreparedScan(source, view, voxelise_view(source, view, grid, dataset.label_map))

    return prepare


def identity_of(settings: DumpSettings, teacher: Teacher, grid: PolarGrid, label_map: LabelMap) -> StoreIdentity:
    """What the store will say made it."""
    return StoreIdentity.of(
        teacher_hash=teacher.hash,
        grid=grid,
        label_map=label_map,
        layers=layer_channels(teacher, settings.layers),
        voxel_features=settings.voxel_features,
        encoding=settings.encoding,
        views=settings.views,
    )


def announce(
    teacher: Teacher | str,
    store: TargetStore,
    scans: int,
    notes: list[str],
    missing: int,
    device: torch.device | str,
    shard: Shard = Shard(),
) -> None:
    """Say what is about to happen."""
    click.echo(f"teacher  {teacher} on {device}")
    identity = store.identity
    click.echo(
        f"cache    {store.location}  views per scan: {identity.views.count}  layers: {', '.join(identity.layers)}"
    )
    click.echo(f"scans    {scans}; {missing} scan-views to dump in shard {shard}")
    for note in notes:
        click.echo(f"note     {note}")
