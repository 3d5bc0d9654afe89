"""The reading end of a dump: scan-views read, voxelised and batched."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from common.base.devices import CPU, use_device
from common.base.errors import DataError
from common.base.worker_processes import WorkerProcesses
from common.scans.dataset import Dataset, voxelise_view
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.view import View
from common.targets.store import ScanView
from common.targets.store.layout import scan_hash
from common.targets.teacher import Teacher
from stage1_dump_teacher.settings import DumpSettings


class ScanSource(NamedTuple):
    """Where scan-views come from, and what becomes of them."""

    settings: DumpSettings
    dataset: Dataset
    grid: PolarGrid


class PreparedScan(NamedTuple):
    """A scan in one view: which one, the SHA-256 and number of its points as read, and the view."""

    item: ScanView
    sha256: str
    points: int
    view: View


@dataclass(frozen=True)
class PreparedBatch:
    """Some scan-views, ready for the teacher.

    Attributes:
        scans: that could be used.
        batch: of them; None without any.
        refused: the others, and why.
    """

    scans: list[PreparedScan]
    batch: ScanBatch | None
    refused: list[tuple[ScanView, DataError]]

    @property
    def usable(self) -> ScanBatch:
        """The batch, of scans that are known to be there."""
        assert self.batch is not None, self.refused
        return self.batch


def read_scans(source: ScanSource, items: list[ScanView]) -> PreparedBatch:
    """Read and voxelise some scan-views; those that cannot be used are refused."""
    settings, dataset, grid = source
    scans, voxelised, refused = [], [], []
    for scan, index in items:
        try:
            labelled = dataset.read(scan)
            view = settings.views.view(scan, index, grid.shape[1])
            voxelised.append(voxelise_view(labelled, view, grid, dataset.label_map))
            scans.append(PreparedScan((scan, index), scan_hash(labelled.points), len(labelled.points), view))
        except DataError as error:
            refused.append(((scan, index), error))
    return PreparedBatch(scans, batch_scans(voxelised, grid.shape) if scans else None, refused)


def read_scans_for_another_process(
    source: ScanSource, items: list[ScanView]
) -> tuple[PreparedBatch, dict[str, np.ndarray]]:
    """`read_scans`, with the tensors of the batch apart."""
    prepared = read_scans(source, items)
    if prepared.batch is None:
        return prepared, {}
    tensors = {name: value for name, value in vars(prepared.batch).items() if isinstance(value, torch.Tensor)}
    nothing: Any = dict.fromkeys(tensors, torch.empty(0))
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return replace(prepared, batch=replace(prepared.batch, **nothing)), arrays


def preparer(
    source: ScanSource,
    device: torch.device = CPU,
    teacher: Teacher | None = None,
    processes: WorkerProcesses | None = None,
) -> Callable[[list[ScanView]], PreparedBatch]:
    """A function that reads and voxelises some scan-views, and brings them to the teacher's device as one batch.

    Where the teacher is given, scans that it has no answer for are refused too. Where processes are, given the source,
    they do the work.
    """

    def read(items: list[ScanView]) -> PreparedBatch:
        if processes is None:
            return read_scans(source, items)
        prepared, tensors = processes.call_for(read_scans_for_another_process, items)
        if prepared.batch is None:
            return prepared
        whole: Any = {name: torch.from_numpy(values) for name, values in tensors.items()}
        return replace(prepared, batch=replace(prepared.batch, **whole))

    def prepare(items: list[ScanView]) -> PreparedBatch:
        prepared = read(items)
        unanswered = unanswered_scans(teacher, prepared.scans) if teacher is not None else []
        if unanswered:
            refused = [*prepared.refused, *unanswered]
            without = {item for item, _ in refused}
            prepared = read([item for item in items if item not in without])
            prepared.refused.extend(refused)
        use_device(device)
        # On the stream of the teacher: its next pass comes after the copy, and nobody has to wait.
        return replace(prepared, batch=prepared.batch and prepared.batch.to(device))

    return prepare


def unanswered_scans(teacher: Teacher, scans: list[PreparedScan]) -> list[tuple[ScanView, DataError]]:
    """Scan-views that a teacher has no answer for, and why."""
    found = []
    for scan in scans:
        try:
            teacher.check_scan(scan.item[0], scan.points)
        except DataError as error:
            found.append((scan.item, error))
    return found
