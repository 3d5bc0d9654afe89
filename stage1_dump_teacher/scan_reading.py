"""The reading end of a dump: scan-views read, voxelised and batched."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from common.base.devices import use_device
from common.base.errors import DataError
from common.base.worker_processes import WorkerProcesses
from common.scans.dataset import Dataset, voxelise_view
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


class PreparedScan(NamedTuple):
    """A scan in one view: which one, the SHA-256 and number of its points as read, and the view."""

    item: ScanView
    sha256: str
    points: int
    view: View


@dataclass(frozen=True)
class PreparedBatch:
    """Scan-views ready for the teacher, with their batch (None without any), and those that are refused, with why."""

    scans: list[PreparedScan]
    batch: ScanBatch | None
    refused: list[tuple[ScanView, DataError]]


def read_scans(source: ScanSource, items: list[ScanView]) -> PreparedBatch:
    """Read and voxelise some scan-views; those that cannot be used are refused."""
    settings, dataset = source
    grid = settings.grid.grid()
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
) -> tuple[tuple[PreparedBatch, dict[str, Any]], dict[str, np.ndarray]]:
    """`read_scans` in parts: all but the batch, fields of the batch that are no tensors, and those that are."""
    prepared = read_scans(source, items)
    fields = {} if prepared.batch is None else vars(prepared.batch)
    tensors = {name: value.numpy() for name, value in fields.items() if isinstance(value, torch.Tensor)}
    others = {name: value for name, value in fields.items() if name not in tensors}
    return (replace(prepared, batch=None), others), tensors


def preparer(
    source: ScanSource, device: torch.device, teacher: Teacher, processes: WorkerProcesses | None
) -> Callable[[list[ScanView]], PreparedBatch]:
    """A function that reads and voxelises some scan-views, and brings them to the teacher's device as one batch.

    Scans that the teacher has no answer for are refused too. Where there are processes, given the source, they read.
    """

    def read(items: list[ScanView]) -> PreparedBatch:
        if processes is None:
            return read_scans(source, items)
        (prepared, fields), tensors = processes.call_for(read_scans_for_another_process, items)
        fields |= {name: torch.from_numpy(values) for name, values in tensors.items()}
        return replace(prepared, batch=ScanBatch(**fields) if fields else None)

    def prepare(items: list[ScanView]) -> PreparedBatch:
        prepared = read(items)
        unanswered = unanswered_scans(teacher, prepared.scans)
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
