"""What one full-size scan costs on this machine: input pipeline, teacher, dump, and a student step, cached and online.

    python -m tests.benchmarks.bench_step [--json] [--repeats 3] [--teacher CHECKPOINT]

Every part runs in a process of its own, so that its peak memory is its own. Times are medians over the repeats after
one warm-up; machines are noisy, so read the ratios. The original code's figures, given for comparison, were taken on
another day: 2 cores of the project's machine, CPU, one full-size real scan.
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from common.base.config import load_settings
from common.base.devices import select_device
from common.base.memory import keep_freed_memory
from common.scans.dataset import Dataset, open_dataset, voxelise_view
from common.scans.label_map import load_label_map
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY
from common.targets.mixing import MixSettings
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentData
from stage2_train_student.training.experiment import TargetSource, new_state, open_targets, student_data
from stage2_train_student.training.scans import choose_scans
from stage2_train_student.training.step import StudentStep, losses, targets_of
from tests.benchmarks.dump_cpu import cpu_seconds, dump_cpu_part, dump_cpu_table
from tests.golden.golden_files import REPOSITORY, scans_folder

EXPERIMENT = REPOSITORY / "configs/experiments/full.yaml"
ORIGINAL = {"input_s": 0.49, "teacher_s": 10.3, "step_s": 41.0, "peak_gb": 9.7}
"""The original code: input pipeline, teacher with dense logits, training step (teacher in the loop), peak memory."""


def seconds_per_call(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call after one warm-up."""
    call()
    return statistics.median(timed(call) for _ in range(repeats))


def timed(call: Callable[[], Any]) -> float:
    """Seconds that one call takes, with the GPU's work if there is one."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def write_teacher(path: Path) -> None:
    """A full-size teacher with random weights in the published layout: networks take as long whatever the values."""
    from common.networks.cylinder3d import Cylinder3D
    from common.networks.published_weights import to_published

    torch.manual_seed(0)
    torch.save(to_published(Cylinder3D(on_cpu=True)), path)


def input_part(folder: Path, repeats: int) -> dict[str, float]:
    """Reading, labelling, voxelising and batching a scan."""
    settings = load_settings(ExperimentSettings, EXPERIMENT)
    label_map, grid = load_label_map(settings.dataset), settings.grid.grid()
    scan = Dataset.open(scans_folder(), label_map).select(settings.train).scans[0]

    def load() -> None:
        batch_scans(
            [voxelise_view(Dataset.open(scans_folder(), label_map).read(scan), IDENTITY, grid, label_map)], grid.shape
        )

    return {"input_s": seconds_per_call(load, 10 * repeats)}


def teacher_part(folder: Path, repeats: int) -> dict[str, float]:
    """The teacher's forward pass, all cached layers and logits."""
    from stage1_dump_teacher.teachers.cylinder3d import load_teacher

    device = select_device()
    settings = load_settings(ExperimentSettings, EXPERIMENT)
    dataset = open_dataset(scans_folder(), settings.dataset)
    scans = choose_scans(settings, dataset)
    data = student_data(settings.model_copy(update={"targets": "none"}), dataset, TargetSource())
    batch = data.load_batch(scans.train[:1], 0).batch.to(device)
    teacher = load_teacher(folder / "teacher.pt", device)
    return {"teacher_s": seconds_per_call(lambda: teacher.targets(batch, tuple(teacher.channels)), repeats)}


def dump_part(folder: Path, repeats: int) -> dict[str, float]:
    """Stage one as the user runs it: reading, teacher and writing everything, overlapped, per scan-view."""
    from stage1_dump_teacher.dump import run
    from stage1_dump_teacher.settings import DumpSettings

    config = REPOSITORY / "configs/teachers/cylinder3d.yaml"
    seconds = {}
    for views in (1, repeats + 1):
        settings = load_settings(DumpSettings, config, [f"views.count={views}"])
        cache = folder / ("cache" if views == 1 else "more_views")
        start = time.perf_counter()
        report = run(settings, scans_folder(), [folder / "teacher.pt"], cache, select_device())
        seconds[report.written] = time.perf_counter() - start
    # Two dumps of different length: their difference leaves out loading the teacher and the first, slower, pass.
    (fewer, short), (more, long) = sorted(seconds.items())
    return {"dump_s": (long - short) / (more - fewer), "full_mb": report.size / report.written / 1e6}


def step_part(folder: Path, repeats: int, targets: str) -> dict[str, float]:
    """A student step with all distillation terms: load, forward, losses, backward, Adam."""
    from stage1_dump_teacher.teachers.cylinder3d import load_teacher

    device = select_device()
    settings = load_settings(ExperimentSettings, EXPERIMENT, [f"targets={targets}", "batch_size=1"])
    label_map = load_label_map(settings.dataset)
    scans = choose_scans(settings, Dataset.open(scans_folder(), label_map))
    teacher = load_teacher(folder / "teacher.pt", device) if targets == "online" else None
    source = open_targets(settings, label_map, scans.train, folder / "cache", teacher)
    data = student_data(settings, Dataset.open(scans_folder(), label_map), source)
    state = new_state(settings, label_map, source, device)
    weights = torch.from_numpy(label_map.class_weights()).to(device)
    one_step = StudentStep(state, settings, weights, source.online)

    def step() -> None:
        one_step([data.load_batch(scans.train[:1], 0)])

    numbers = {f"step_{'cached' if targets == 'cache' else targets}_s": seconds_per_call(step, repeats)}
    if source.store is not None:
        store, scan = source.store, scans.train[0]
        points = Dataset.open(scans_folder(), label_map).read(scan).points
        numbers["targets_s"] = seconds_per_call(lambda: store.read(scan, 0, points, data.layers), 3 * repeats)
        loaded = data.load_batch(scans.train[:1], 0)
        batch = loaded.batch.to(device)
        cached = targets_of(loaded, batch, None, device)
        with torch.no_grad():
            numbers["forward_s"] = seconds_per_call(
                lambda: losses(state.networks.student, state.networks.distillation, batch, cached, weights), repeats
            )
        mixed_settings = settings.model_copy(update={"mix": MixSettings(probability=1.0)})
        mixing = replace(data, settings=mixed_settings, partners=scans.train)
        numbers |= mixing_costs(data, mixing, one_step, scan, repeats)
    return numbers


def mixing_costs(
    data: StudentData, mixing: StudentData, one_step: StudentStep, scan: ScanId, repeats: int
) -> dict[str, float]:
    """CPU seconds of loading a scan, and of a step with it, where a second scan is mixed in and where not."""
    numbers = {}
    for name, loader in (("plain", data), ("mixed", mixing)):
        load = partial(loader.load_batch, [scan], 0)
        numbers[f"load_{name}_cpu_s"] = cpu_seconds(load, 5 * repeats)
        numbers[f"step_{name}_cpu_s"] = cpu_seconds(lambda load=load: one_step([load()]), repeats)  # type: ignore[misc]
    return numbers


PARTS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "input": input_part,
    "teacher": teacher_part,
    "dump": dump_part,
    "dump_cpu": dump_cpu_part,
    "cached": lambda folder, repeats: step_part(folder, repeats, "cache"),
    "online": lambda folder, repeats: step_part(folder, repeats, "online"),
}


def measure(part: str, folder: Path, repeats: int) -> dict[str, float]:
    """Run one part in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_step", "--part", part, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--repeats", str(repeats)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def table(numbers: dict[str, float]) -> str:
    """The numbers beside the original's, as text."""
    rows = [
        ("input pipeline", numbers["input_s"], ORIGINAL["input_s"]),
        ("teacher forward", numbers["teacher_s"], ORIGINAL["teacher_s"]),
        ("dump, per scan", numbers["dump_s"], None),
        ("student step, cached", numbers["step_cached_s"], ORIGINAL["step_s"]),
        ("student step, online", numbers["step_online_s"], ORIGINAL["step_s"]),
    ]
    lines = [f"{'':24} {'seconds':>9} {'original':>9} {'ratio':>7}"]
    for name, ours, original in rows:
        against = f"{original:9.2f} {ours / original:7.3f}" if original else f"{'':9} {'':7}"
        lines.append(f"{name:24} {ours:9.3f} {against}")
    peak = numbers["peak_gb"]
    lines += [
        f"{'peak memory in GB':24} {peak:9.2f} {ORIGINAL['peak_gb']:9.2f} {peak / ORIGINAL['peak_gb']:7.3f}",
        "",
        f"cached step / online step            {numbers['step_cached_over_online']:.3f}",
        f"reading targets / cached step        {numbers['targets_share']:.4f}",
        f"mixed step / cached step, CPU        {numbers['step_mixed_cpu_s'] / numbers['step_plain_cpu_s']:.3f}",
        f"mixed scan loaded / one scan, CPU    {numbers['load_mixed_cpu_s'] / numbers['load_plain_cpu_s']:.3f}",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="Of random weights otherwise; features compress unlike."
)
@click.option("--part", type=click.Choice(list(PARTS)), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(as_json: bool, repeats: int, teacher: Path | None, part: str | None, folder: Path | None) -> None:
    """Measure one full-size real scan and print a table of ratios."""
    if part and folder:
        keep_freed_memory()
        numbers = PARTS[part](folder, repeats)
        numbers[f"peak_{part}_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        click.echo(json.dumps(numbers))
        return
    numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "teacher.pt"
        shutil.copyfile(teacher, checkpoint) if teacher else write_teacher(checkpoint)
        for name in PARTS:
            click.echo(f"measuring {name} ...", err=True)
            numbers |= measure(name, Path(temporary), repeats)
    numbers["step_cached_over_online"] = numbers["step_cached_s"] / numbers["step_online_s"]
    numbers["targets_share"] = numbers["targets_s"] / numbers["step_cached_s"]
    numbers["peak_gb"] = numbers["peak_cached_gb"]
    click.echo(table(numbers) + "\n\n" + dump_cpu_table(numbers))
    if as_json:
        click.echo(json.dumps({name: round(value, 5) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
