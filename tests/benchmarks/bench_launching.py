"""What reading and writing cost the thread that launches a GPU's kernels, done by a thread and by a process beside it.

    python -m tests.benchmarks.bench_launching [--json] [--rounds 15] [--teacher CHECKPOINT]

Runs without a GPU: a launch is a call of PyTorch that takes a few microseconds and gives Python's lock away meanwhile,
as one to a GPU does. Whoever holds the lock then keeps the next launch waiting. One scan after another is read (and
voxelised), or written (compressed, with its targets encoded before, which on a GPU is launched by the same thread) on
the machine's other core. A GPU's dump keeps several threads busy at once.
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import torch

from common.base.config import load_settings
from common.base.devices import CPU
from common.base.memory import keep_freed_memory
from common.base.worker_processes import WorkerProcesses
from common.scans.dataset import open_dataset
from common.targets.store import TargetStore
from stage1_dump_teacher.dump import identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer, read_scans
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from tests.benchmarks.bench_step import write_teacher
from tests.golden.golden_files import REPOSITORY, scans_folder

LAUNCHES = 30_000
"""Of one measurement: about a tenth of a second."""


def seconds_of_launches() -> float:
    """What so many take."""
    numbers = torch.zeros(8)
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        numbers.add_(1)
    return time.perf_counter() - start


class Beside:
    """A thread that does something again and again, until it is told to do something else.

    Attributes:
        work: what it does; None for nothing.
        done: how often it did.
    """

    def __init__(self) -> None:
        self.work: Callable[[], object] | None = None
        self.done = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            if self.work is None:
                time.sleep(0.005)
            else:
                self.work()
                self.done += 1


def work_by_name(checkpoint: Path, folder: Path, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """Reading and writing, as a dump does them with and without processes."""
    found: dict[str, Callable[[], object]] = {}
    teacher = load_teacher(checkpoint, CPU)
    for profile in ("train", "full"):
        settings = load_settings(DumpSettings, REPOSITORY / "configs/teachers/cylinder3d.yaml", [f"profile={profile}"])
        dataset = open_dataset(scans_folder(), settings.dataset)
        source = ScanSource(settings, dataset)
        item = (dataset.select(settings.splits).scans[0], 0)
        prepared = read_scans(source, [item])
        assert prepared.batch is not None
        targets = teacher.targets(prepared.batch, settings.layers, settings.voxel_features)
        identity = identity_of(settings, teacher, dataset.label_map)
        store = TargetStore.create_or_resume(folder / profile, identity, {})
        arrays = store.start_encoding(*item, prepared.scans[0].view, targets, prepared.scans[0].sha256)()
        for kind in ("thread", "process"):
            reading = stack.enter_context(WorkerProcesses(1, source)) if kind == "process" else None
            writing = stack.enter_context(WorkerProcesses(1, store)) if kind == "process" else None
            if profile == "train":
                found[f"reading, {kind}"] = partial(preparer(source, CPU, teacher, reading), [item])
            writer = ScanWriter(store, processes=writing)
            found[f"writing {profile}, {kind}"] = partial(writer.write, *item, lambda arrays=arrays: arrays)  # type: ignore[misc]
    return found


def measure(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """By what is done beside: how much longer launches take than with nothing beside, and milliseconds of one scan."""
    beside, seconds = Beside(), {name: [seconds_of_launches()] for name in ("nothing", *work)}
    ratios: dict[str, list[float]] = {name: [] for name in work}
    scans: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    for _ in range(rounds):
        for name in ("nothing", *work):
            beside.work = work.get(name)
            time.sleep(0.1)
            start, before = time.perf_counter(), beside.done
            seconds[name].append(statistics.fmean(seconds_of_launches() for _ in range(3)))
            if name in work:
                scans[name].append((time.perf_counter() - start) / max(beside.done - before, 1))
                ratios[name].append(seconds[name][-1] / seconds["nothing"][-1])
    beside.work = None
    return {
        name: {"launches": statistics.median(ratios[name]), "scan_ms": 1e3 * statistics.median(scans[name])}
        for name in work
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--rounds", default=15, show_default=True)
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="Of random weights otherwise; features compress unlike."
)
def main(as_json: bool, rounds: int, teacher: Path | None) -> None:
    """Launch beside a thread and beside a process, in turns."""
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        checkpoint = teacher or Path(temporary) / "teacher.pt"
        if teacher is None:
            write_teacher(checkpoint)
        numbers = measure(work_by_name(checkpoint, Path(temporary), stack), rounds)
    click.echo(f"{'beside, again and again':26} {'launches':>9} {'a scan':>9}")
    for name, row in numbers.items():
        click.echo(f"{name:26} {row['launches']:7.2f} x {row['scan_ms']:6.0f} ms")
    if as_json:
        click.echo(json.dumps(numbers))


if __name__ == "__main__":
    main()
