"""The writing end of a dump: targets, or why there are none, and the count of both."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.base.errors import PolarDistillError, StoreError
from common.base.worker_processes import WorkerProcesses
from common.scans.scan_id import ScanId
from common.targets.store import ScanView, TargetStore, UnstorableError
from common.targets.store.members import UnwrittenArrays
from common.targets.store.skipped import record_skipped, remove_skipped, skipped_scan_views
from common.targets.store.storage import FolderStorage
from common.targets.store.watch import StoreWatch

SIZE_SAMPLE = 5
"""Scans written before the size of the whole dump is estimated."""

HOPELESS = 5
"""Scans in a row from the start whose targets cannot be stored: then it is the teacher, not the scans."""


@dataclass
class DumpReport:
    """What a dump did: numbers of scan-views, with bytes of those written now, and reasons of those skipped.

    `present` were there before; `left` are still missing because the dump was asked to stop.
    """

    written: int = 0
    present: int = 0
    size: int = 0
    skipped: list[str] = field(default_factory=list)
    left: int = 0


class ScanWriter:
    """Writes targets into a store, or why there are none, and counts. Several threads may use it at once.

    Attributes:
        report: of the dump, kept up to date.
        expected: scan-views that are about to be written; the room for them is checked.
        written: scan-views written so far.
    """

    def __init__(self, store: TargetStore, skip: bool = False, processes: WorkerProcesses | None = None) -> None:
        """Look at the store as it is.

        Args:
            store: to write to.
            skip: go on after scans that cannot be used.
            processes: that compress and write, given the store; by default the thread that asks does.
        """
        self.store = store
        self.report = DumpReport()
        self.expected = 0
        self.written: set[ScanView] = set()
        self._watch = StoreWatch(store)
        self._skip = skip
        self._recorded = skipped_scan_views(store)
        self._lock = threading.Lock()
        self._processes = processes

    def write(self, scan: ScanId, index: int, encoded: Callable[[], UnwrittenArrays]) -> None:
        """Write the targets of one scan-view, from what `TargetStore.start_encoding` returned.

        Raises:
            StoreError: they cannot be written, the disk is too small for the whole dump, or the store is gone.
        """
        try:
            arrays = encoded()
            if self._processes is None:
                size = self.store.write_arrays(scan, index, arrays)
            else:
                size = self._processes.call_with(write_arrays, arrays.arrays, scan, index, arrays.attributes)
        except UnstorableError as error:
            self.pass_over(scan, index, error)
            return
        self._watch.check()
        if (scan, index) in self._recorded:
            remove_skipped(self.store, scan, index)
        with self._lock:
            self.written.add((scan, index))
            self.report.size += size
            self.report.written += 1
            if self.report.written == SIZE_SAMPLE:
                self._check_room()

    def _check_room(self) -> None:
        """Stop before the disk is full rather than when it is."""
        if not isinstance(self.store.storage, FolderStorage):
            return
        needed = self.report.size // SIZE_SAMPLE * (self.expected - SIZE_SAMPLE)
        free = self.store.storage.free_bytes()
        if needed > free:
            raise StoreError(
                f"{self.store.location}: about {needed / 1e9:.0f} GB to be written, {free / 1e9:.0f} GB are free. Make "
                "room, choose another --cache, or keep less (profile=train); what is written stays usable."
            )

    def check_all_there(self, present: set[ScanView]) -> None:
        """That the store holds what was written and what was present before, see `StoreWatch.check_holds`."""
        self._watch.check_holds(present | self.written)

    def pass_over(self, scan: ScanId, index: int, error: PolarDistillError) -> None:
        """Write down why a scan-view has no targets; raise it where none is to be skipped, or all are such."""
        report, name = self.report, f"scan {scan}"
        with self._lock:
            alone = isinstance(error, UnstorableError) and not (report.written or report.present)
            if not self._skip or (alone and len(report.skipped) >= HOPELESS):
                raise error
            report.skipped.append(error.message if error.message.startswith(name) else f"{name}: {error.message}")
            # As one thread would have found them.
            report.skipped.sort()
        record_skipped(self.store, scan, index, error.message)


def write_arrays(
    store: TargetStore, arrays: dict[str, np.ndarray], scan: ScanId, index: int, attributes: dict[str, Any]
) -> int:
    """`TargetStore.write_arrays`, for another process."""
    return store.write_arrays(scan, index, UnwrittenArrays(attributes, arrays))
