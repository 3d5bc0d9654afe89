"""Stage one in a process of a cluster: see `stage1_dump_teacher.cluster`, which hands it its work."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from common.base.cluster import Share, work_in
from common.base.devices import select_device
from common.scans.dataset import open_dataset
from common.targets.store import ScanView
from stage1_dump_teacher.dump import dump_missing, teacher_and_store
from stage1_dump_teacher.dump_workers import worker_processes
from stage1_dump_teacher.scan_reading import ScanSource, preparer
from stage1_dump_teacher.scan_writer import DumpReport, ScanWriter
from stage1_dump_teacher.settings import DumpSettings


class DumpJob(NamedTuple):
    """What every worker of a dump is told, see `dump.run`; relative paths are below `folder`."""

    settings: DumpSettings
    data: Path
    checkpoints: Sequence[Path]
    cache: str
    folder: Path


class DumpWorker:
    """Dumps what it is handed; one lives in each process that Ray starts for it."""

    def load(self, job: DumpJob, share: Share, workers: int) -> str:
        """Load the teacher, and make the store where there is none; raises as `dump.run`.

        Args:
            job: the dump.
            share: what this worker takes of its machine.
            workers: that the machine has room for.

        Returns:
            the teacher in words.
        """
        work_in(job.folder)
        # As torchrun says it: readers, writers and shared memory are for all of them.
        os.environ["LOCAL_WORLD_SIZE"] = str(workers)
        if not share.gpus:
            torch.set_num_threads(share.cpus)
        self.settings, self.device = job.settings, select_device(share.device)
        dataset = open_dataset(job.data, self.settings.dataset)
        self.teacher, store = teacher_and_store(self.settings, dataset, job.checkpoints, job.cache, self.device)
        source = ScanSource(self.settings, dataset)
        self.helpers = ExitStack()
        reading, writing = self.helpers.enter_context(worker_processes(source, store, self.device))
        self.prepare = preparer(source, self.device, self.teacher, reading)
        self.writer = ScanWriter(store, self.settings.on_bad_scan == "skip", writing)
        return str(self.teacher)

    def close(self) -> None:
        """End the processes that read and write."""
        self.helpers.close()

    def dump(self, items: list[ScanView], present: int, waiting: int) -> tuple[DumpReport, list[ScanView]]:
        """Dump some scan-views; raises as `dump.run`.

        Args:
            items: to be dumped.
            present: number of scan-views that are known to be in the store.
            waiting: number of those that wait beside the items.

        Returns:
            what this worker did so far, and which of the items it did not do because it was asked to end.
        """
        report = self.writer.report
        report.present, self.writer.expected = present, report.written + len(items) + waiting
        return report, dump_missing(self.writer, self.teacher, items, self.settings, self.prepare, self.device)
