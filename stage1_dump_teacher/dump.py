"""Stage one: run the frozen teacher once over every scan and cache what it says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

from common.base.devices import Launch, set_float32_precision, side_stream, use_device
from common.base.environment import processors_of_rank
from common.base.errors import DataError
from common.base.overlap import BackgroundWriter, StageClock, started_ahead
from common.base.shards import Shard
from common.base.signals import StopRequest
from common.scans.dataset import Dataset, open_dataset, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid, check_distillable
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.view import View
from common.targets.store import ScanView, StoreIdentity, TargetStore
from common.targets.store.storage import FolderStorage
from common.targets.teacher import Teacher, check_classes, layer_channels
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.scan_writer import DumpReport, ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.loading import load_named_teacher

MOST_WRITERS = 8
"""By default: more than a GPU's fastest teacher keeps busy, each with a scan's targets in memory."""


@dataclass(frozen=True)
class PreparedScan:
    """A scan in one view, ready for the teacher.

    Attributes:
        points: float32 [N, 4], as read.
        view: of the scan.
        batch: of this one scan, on the teacher's device.
    """

    points: np.ndarray
    view: View
    batch: ScanBatch


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
        SettingsError: it has other classes than the dataset, or does not compute in the precision on this device.
        StoreError: the store belongs to something else or vanishes meanwhile, the disk is too small, or the teacher
            produced what cannot be stored (with `on_bad_scan: skip`, of no scan anything else).
    """
    dataset = open_dataset(data, settings.dataset)
    grid = settings.grid.grid()
    check_distillable(grid.shape)
    scans, notes = dataset.select(settings.splits)
    set_float32_precision(tf32=settings.precision == "tf32")
    teacher = load_named_teacher(settings.teacher, checkpoint, device, settings.precision)
    check_classes(teacher, dataset.label_map)
    store = TargetStore.create_or_resume(cache, identity_of(settings, teacher, grid, dataset.label_map))
    finished = store.finished()
    work = shard.of([(scan, view) for scan in scans for view in range(settings.views.count)])
    missing = [item for item in work if item not in finished]
    announce(teacher, store, len(scans), notes, len(missing), device, shard)
    report = DumpReport(present=len(work) - len(missing))
    writer = ScanWriter(store, report, len(missing), settings.on_bad_scan == "skip")
    dump_missing(writer, teacher, missing, settings, preparer(settings, dataset, grid, device), device)
    writer.check_all_there(finished.intersection(work))
    return report


def dump_missing(
    scan_writer: ScanWriter,
    teacher: Teacher,
    missing: list[ScanView],
    settings: DumpSettings,
    prepare: Callable[[ScanView], PreparedScan],
    device: torch.device,
) -> None:
    """Read ahead, run the teacher and write behind, one scan-view after another, until all is done or Ctrl-C.

    This thread does nothing but launch the teacher: other threads read, and others wait for its targets, encode them
    where they are, and write.
    """
    use_device(device)
    progress = tqdm(total=len(missing), unit="scan", desc="dump-teacher", disable=not missing)
    readers, writers = threads_of(settings, device, isinstance(scan_writer.store.storage, FolderStorage))
    clock = StageClock({"reading": readers, "teacher": 1, "writing": max(writers, 1)})

    def read(item: ScanView) -> PreparedScan:
        with clock.measure("reading"):
            return prepare(item)

    def write(item: ScanView, prepared: PreparedScan, targets: TeacherTargets, launch: Launch) -> None:
        clock.add("teacher", launch.wait())
        with clock.measure("writing"), side_stream(device):
            scan_writer.write(*item, prepared.view, targets, prepared.points)

    # Targets wait in the teacher's memory: few more of them than there are threads.
    background = BackgroundWriter(depth=writers + 2 if writers else 0, threads=max(writers, 1))
    with progress, StopRequest() as stop, background as writer:
        for item, future in started_ahead(read, missing, max(settings.read_ahead, readers), readers):
            try:
                prepared = future.result()
            except DataError as error:
                scan_writer.pass_over(*item, error)
                progress.update()
                continue
            with Launch(device) as launch:
                targets = teacher.targets(prepared.batch, settings.layers, settings.voxel_features)
            writer.submit(write, item, prepared, targets, launch)
            progress.set_postfix_str(f"slowest={clock.slowest}", refresh=False)
            progress.update()
            if stop:
                break
    report = scan_writer.report
    report.left = len(missing) - report.written - len(report.skipped)


def threads_of(settings: DumpSettings, device: torch.device, local: bool) -> tuple[int, int]:
    """Threads that read and that write, for a teacher on some device and a store that is or is not in a folder."""
    on_gpu = device.type == "cuda"
    readers = settings.readers or (2 if on_gpu else 1)
    # On a CPU the teacher uses every core; encoding beside it would only slow it down, waiting for a network would not.
    default = max(1, min(MOST_WRITERS, processors_of_rank() - 1)) if on_gpu or not local else 0
    return readers, default if settings.writers is None else settings.writers


def preparer(
    settings: DumpSettings, dataset: Dataset, grid: PolarGrid, device: torch.device = torch.device("cpu")
) -> Callable[[ScanView], PreparedScan]:
    """A function that reads and voxelises one scan-view, and brings it to the teacher's device."""

    def prepare(item: ScanView) -> PreparedScan:
        scan, index = item
        source = dataset.read(scan)
        view = settings.views.view(scan, index, grid.shape[1])
        batch = batch_scans([voxelise_view(source, view, grid, dataset.label_map)], grid.shape)
        use_device(device)
        # On the stream of the teacher: its next pass comes after the copy, and nobody has to wait.
        return PreparedScan(source.points, view, batch.to(device))

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
        precision=settings.precision,
    )


def announce(
    teacher: Teacher,
    store: TargetStore,
    scans: int,
    notes: list[str],
    missing: int,
    device: torch.device,
    shard: Shard,
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
