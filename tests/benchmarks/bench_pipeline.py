"""Whether a dump keeps up with a fast teacher as writer threads are added, as far as this machine's cores allow.

    python -m tests.benchmarks.bench_pipeline [--json] [--teacher-ms 15] [--scans 60]

The teacher is simulated: it sleeps as long as one on a GPU computes, and answers with what a full-size teacher says
about one real scan. Reading, voxelising, encoding, compressing and writing are the dump's own, on one core a thread; a
GPU would also take over the encoding. Where cores are the limit, the time of a scan is at least its CPU seconds over
the cores: the last column is the larger of this and the teacher's time, over the time that was measured.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from common.base.config import load_settings
from common.base.environment import processors
from common.base.memory import keep_freed_memory
from common.scans.dataset import open_dataset
from common.scans.scan_batch import ScanBatch
from common.targets.store import TargetStore
from common.targets.teacher import Teacher
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.dump import dump_missing, identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from tests.benchmarks.bench_step import write_teacher
from tests.golden.golden_files import REPOSITORY, scans_folder

CPU = torch.device("cpu")
THREADS = (0, 1, 2, 4)


class SleepingTeacher(Teacher):
    """Says the same of every batch after a while in which it needs no core."""

    name = "sleeping"
    hash = "0" * 64

    def __init__(self, teacher: Teacher, answer: TeacherTargets, seconds: float) -> None:
        self._teacher, self._answer, self._seconds = teacher, answer, seconds

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "SleepingTeacher":
        """Not from a checkpoint."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Of the teacher that answered."""
        return self._teacher.classes

    @property
    def channels(self) -> dict[str, int]:
        """Of the teacher that answered."""
        return self._teacher.channels

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        """What a full-size teacher said of one scan."""
        time.sleep(self._seconds)
        return self._answer


def settings_of(profile: str, scans: int, writers: int) -> DumpSettings:
    """A dump of one scan in many views."""
    words = [f"profile={profile}", f"views.count={scans}", f"writers={writers}", f"readers={2 if writers > 1 else 1}"]
    return load_settings(DumpSettings, REPOSITORY / "configs/teachers/cylinder3d.yaml", words)


def measure(profile: str, teacher_ms: float, scans: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of writers."""
    settings = settings_of(profile, scans, 0)
    dataset = open_dataset(scans_folder(), settings.dataset)
    scan = dataset.select(settings.splits).scans[0]
    real = load_teacher(folder / "teacher.pt", CPU)
    prepare = preparer(ScanSource(settings, dataset), CPU, real, None)
    batch = prepare([(scan, 0)]).batch
    assert batch is not None
    answer = real.targets(batch, settings.layers, settings.voxel_features)
    teacher = SleepingTeacher(real, answer, teacher_ms / 1e3)
    rows = []
    torch.set_num_threads(1)
    for writers in THREADS:
        settings = settings_of(profile, scans, writers)
        store = TargetStore.create_or_resume(
            folder / f"{profile}{writers}", identity_of(settings, real, dataset.label_map), {}
        )
        work = [(scan, view) for view in range(scans)]
        start, cpu = time.perf_counter(), time.process_time()
        dump_missing(ScanWriter(store), teacher, work, settings, prepare, CPU)
        taken, cpu_ms = 1e3 * (time.perf_counter() - start) / scans, 1e3 * (time.process_time() - cpu) / scans
        best = max(teacher_ms, cpu_ms / processors())
        rows.append(
            {"profile": profile, "writers": writers, "ms": taken, "over_teacher": taken / teacher_ms, "cpu_ms": cpu_ms}
            | {"of_best": best / taken}
        )
    return rows


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--teacher-ms", default=15.0, show_default=True, help="A pass of the simulated teacher.")
@click.option("--scans", default=60, show_default=True, help="Scan-views of each dump.")
def main(as_json: bool, teacher_ms: float, scans: int) -> None:
    """Dump with more and more writers beside a simulated teacher."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        write_teacher(Path(temporary) / "teacher.pt")
        rows = [row for profile in ("train", "full") for row in measure(profile, teacher_ms, scans, Path(temporary))]
    click.echo(f"simulated teacher {teacher_ms:.0f} ms, {processors()} cores")
    click.echo(f"{'profile':8} {'writers':>7} {'ms a scan':>10} {'/ teacher':>10} {'CPU ms':>8} {'of the best':>12}")
    for row in rows:
        click.echo(
            f"{row['profile']:8} {row['writers']:7} {row['ms']:10.1f} {row['over_teacher']:10.2f} {row['cpu_ms']:8.1f} "
            f"{row['of_best']:12.2f}"
        )
    if as_json:
        click.echo(json.dumps({"teacher_ms": teacher_ms, "cores": processors(), "rows": rows}))


if __name__ == "__main__":
    main()
