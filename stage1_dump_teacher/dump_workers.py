"""How many threads read and write in a dump, and whether processes do it for them."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click
import torch

from common.base.environment import processors_of_rank
from common.base.errors import SettingsError
from common.base.worker_processes import SHARED_MEMORY, WorkerError, WorkerProcesses, shared_memory_free
from common.targets.store import TargetStore
from common.targets.store.storage import FolderStorage
from stage1_dump_teacher.scan_reading import ScanSource
from stage1_dump_teacher.settings import DumpSettings

MOST_WRITERS = 8
"""By default: more than a GPU's fastest teacher keeps busy, each with a scan's targets in memory."""

SHARED_BYTES = 1_000_000_000
"""What scan-views under way may need: batches of four that wait, and a scan's targets for each writer."""


def threads_of(settings: DumpSettings, device: torch.device, local: bool) -> tuple[int, int]:
    """Threads that read and that write, for a teacher on some device and a store that is or is not in a folder."""
    on_gpu = device.type == "cuda"
    readers = settings.readers or (2 if on_gpu else 1)
    # On a CPU the teacher uses every core; encoding beside it would only slow it down, waiting for a network would not.
    default = max(1, min(MOST_WRITERS, processors_of_rank() - 1)) if on_gpu or not local else 0
    return readers, default if settings.writers is None else settings.writers


@contextmanager
def worker_processes(
    source: ScanSource, store: TargetStore, device: torch.device
) -> Iterator[tuple[WorkerProcesses | None, WorkerProcesses | None]]:
    """Processes that read, and those that write, where a dump is to have them; see `DumpSettings.processes`.

    Raises:
        SettingsError: they are asked for, but cannot share enough memory.
        WorkerError: they are asked for and do not start, for example since the dataset cannot be pickled.
    """
    local = isinstance(store.storage, FolderStorage)
    with ExitStack() as started:
        reading = writing = None
        if in_processes(source.settings, device, local):
            readers, writers = threads_of(source.settings, device, local)
            try:
                reading = started.enter_context(WorkerProcesses(readers, source))
                writing = started.enter_context(WorkerProcesses(max(writers, 1), store))
            except WorkerError as error:
                if source.settings.processes:
                    raise WorkerError(
                        f"processes=true: {error.message}. Leave it out, and threads do the work."
                    ) from error
                click.echo(f"note     {error.message}; threads do it, which slows a GPU's teacher down")
                reading = writing = None
        yield reading, writing


def in_processes(settings: DumpSettings, device: torch.device, local: bool) -> bool:
    """Whether processes read and write. Raises SettingsError as `worker_processes`."""
    by_default = device.type == "cuda" and local
    if not (by_default if settings.processes is None else settings.processes):
        return False
    needed = SHARED_BYTES * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if shared_memory_free() >= needed:
        return True
    if settings.processes:
        raise SettingsError(
            f"processes=true: {SHARED_MEMORY} has less than {needed / 1e9:.0f} GB free, in which processes hand "
            "scans over. Give the container more (docker: --shm-size=4g, or --ipc=host), or set processes=false."
        )
    click.echo(f"note     {SHARED_MEMORY} is small: threads read and write (docker: --shm-size=4g is faster)")
    return False
