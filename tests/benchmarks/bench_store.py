"""What the target store costs: bytes, reading, delivery to the training loop, opening, and storage beside the teacher.

    python -m tests.benchmarks.bench_store [--json] [--teacher CHECKPOINT] [--teacher-steps 8] [--steps 3 ...]

Real scans, full-size teacher. Sizes depend on what features look like, so without --teacher one is trained for a few
steps first (and kept in cache/benchmarks/). Ratios are taken within one run; times are medians.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from common.base.config import load_settings
from common.base.memory import keep_freed_memory
from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.targets.store import TargetStore
from stage1_dump_teacher.dump import dump_missing, identity_of
from stage1_dump_teacher.scan_reading import ScanSource, preparer
from stage1_dump_teacher.scan_writer import ScanWriter
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher, load_teacher
from tests.benchmarks.brief_teacher import train_briefly
from tests.benchmarks.store_alternatives import alternatives_table
from tests.benchmarks.store_losses import LossProbe
from tests.benchmarks.store_opening import COUNTS, DELAY, open_many, open_semantic_kitti, open_served
from tests.benchmarks.store_reading import delivery, read_over_floor
from tests.golden.golden_files import REPOSITORY, scans_folder

VIEWS = 4
TEACHER_CONFIG = REPOSITORY / "configs/teachers/cylinder3d.yaml"


def brief_teacher(checkpoint: Path | None, steps: int) -> tuple[Path, str]:
    """A checkpoint whose features are not random, and what it is."""
    if checkpoint is not None:
        return checkpoint, f"checkpoint {checkpoint.name}"
    path = REPOSITORY / f"cache/benchmarks/brief_teacher_{steps}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_briefly(path, steps, learning_rate=1e-3)
    return path, f"full-size teacher trained for {steps} steps on the labelled sample scans"


def dump_sample(
    settings: DumpSettings, teacher: Cylinder3DTeacher, folder: Path
) -> tuple[TargetStore, dict[str, float]]:
    """Dump every sample scan in several views, alternating with the teacher alone on the same scan-views.

    Returns:
        the store; seconds per scan-view of the dump (`dump_s`), of the teacher alone (`teacher_s`), their ratio.
    """
    label_map = load_label_map(settings.dataset)
    store = TargetStore.create_or_resume(folder, identity_of(settings, teacher, label_map), {})
    dataset, cpu = Dataset.open(scans_folder(), label_map), torch.device("cpu")
    prepare = preparer(ScanSource(settings, dataset), cpu, teacher, None)
    scans = dataset.select(settings.splits).scans
    dumped, alone = [], []
    for view in range(VIEWS):
        work = [(scan, view) for scan in scans]
        batches = [batch for batch in (prepare([item]).batch for item in work) if batch is not None]
        if view == 0:
            teacher.targets(batches[0], settings.layers, settings.voxel_features)
        start = time.perf_counter()
        for batch in batches:
            teacher.targets(batch, settings.layers, settings.voxel_features)
        alone.append((time.perf_counter() - start) / len(work))
        start = time.perf_counter()
        dump_missing(ScanWriter(store), teacher, work, settings, prepare, cpu)
        dumped.append((time.perf_counter() - start) / len(work))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(dumped, alone, strict=True))
    return store, {
        "dump_s": statistics.median(dumped),
        "teacher_s": statistics.median(alone),
        "dump_over_teacher": ratio,
    }


def dump_settings(*overrides: str) -> DumpSettings:
    """The default dump settings with some overrides."""
    return load_settings(DumpSettings, TEACHER_CONFIG, [f"views.count={VIEWS}", *overrides])


def loss_probe(teacher: Cylinder3DTeacher, folder: Path) -> LossProbe:
    """The first sample scan with its targets in float32."""
    fp32 = [f"encoding.{part}=float32" for part in ("pillar_features", "voxel_features", "logits")]
    settings = dump_settings("profile=custom", "voxel_features=false", "views.count=1", *fp32)
    dataset = Dataset.open(scans_folder(), load_label_map(settings.dataset))
    return LossProbe(teacher, settings, scans_folder(), min(dataset.select(settings.splits).scans), folder)


def choices_table(checkpoint: Path, folder: Path, steps: tuple[int, ...]) -> tuple[list[dict[str, Any]], str]:
    """What so many steps a deviation, and those of profile train, cost and lose; and the same as text."""
    probe = loss_probe(load_teacher(checkpoint, torch.device("cpu")), folder)
    train = dump_settings("profile=train")
    choices = [(f"{count} steps", train.encoding.model_copy(update={"steps": count})) for count in steps]
    rows = list(probe.choices([*choices, ("its own steps", train.encoding)], train.grid.shape))
    lines = [f"{'profile train with':20} {'MB':>6} {'worst term':>11} {'cosine':>9} {'same class':>11} {'CPU s':>6}"]
    for row in rows:
        term, same = f"{100 * row['worst_term_error']:.3f} %", f"{100 * row['same_class']:.2f} %"
        lines.append(
            f"{row['choice']:20} {row['bytes'] / 1e6:6.2f} {term:>11} {row['gradient_cosine']:9.6f} {same:>11} "
            f"{row['cpu_s']:6.2f}"
        )
    return rows, "\n".join(lines)


def measure(checkpoint: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """All numbers, and the table of alternatives as text."""
    teacher = load_teacher(checkpoint, torch.device("cpu"))
    click.echo("dumping ...", err=True)
    store, numbers = dump_sample(dump_settings("profile=train"), teacher, folder / "train")
    click.echo("reading ...", err=True)
    first = min(store.finished())
    numbers["train_bytes_per_scan"] = store.sizes()[first]
    numbers |= read_over_floor(store)
    numbers |= delivery(store)
    table = alternatives_table(store, first, folder / "alternatives")
    click.echo("comparing losses ...", err=True)
    numbers |= loss_probe(teacher, folder / "exact").agreement(store.read(*first, None)[0])
    click.echo("opening large stores ...", err=True)
    numbers |= open_semantic_kitti(store, folder / "large")
    for count in COUNTS:
        numbers |= open_many(folder, count) | open_served(folder / "served", count, DELAY)
    return numbers, table


def report(numbers: dict[str, Any], table: str, what: str) -> str:
    """The numbers as text, each beside its goal."""
    rows = [
        ("read one scan over codec alone", f"{numbers['read_over_floor']:.2f}", "<= 1.3"),
        ("  the same through zarr's own API", f"{numbers['zarr_api_over_floor']:.2f}", ""),
        ("two threads over one, delivered", f"{numbers['two_worker_speedup']:.2f}", ">= 1.6"),
        ("delivered over DataLoader of dicts", f"{numbers['delivery_over_dataloader']:.2f}", ">= 2"),
        ("bytes per scan, profile train", f"{numbers['train_bytes_per_scan'] / 1e6:.2f} MB", "<= 2.6 MB"),
        ("worst loss term against float32", f"{100 * numbers['worst_term_error']:.3f} %", "<= 0.5 %"),
        ("gradient cosine against float32", f"{numbers['gradient_cosine']:.6f}", ">= 0.9995"),
        ("voxels whose likeliest class stays", f"{100 * numbers['same_class']:.2f} %", ">= 99.5 %"),
        ("open 23,201 scans and index them", f"{numbers['open_23201_s']:.2f} s", "< 1 s"),
        ("  memory for that", f"{numbers['open_23201_mb']:.0f} MB", "< 100 MB"),
        ("  info", f"{numbers['info_23201_s']:.2f} s", "< 5 s"),
        ("open 1,000,000 scans", f"{numbers['open_1e6_s']:.2f} s", "<= 30 s"),
        ("  memory for that", f"{numbers['open_1e6_mb']:.0f} MB", ""),
        ("  the same on a server, 0.1 s a page", f"{numbers['open_served_1e6_s']:.2f} s", "<= 30 s"),
        ("dump over teacher alone", f"{numbers['dump_over_teacher']:.2f}", "<= 1.1"),
    ]
    lines = [f"{name:38} {value:>12}   {goal}" for name, value, goal in rows]
    return "\n".join([f"targets of: {what}", "", *lines, "", table])


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Published-layout checkpoint of a trained teacher.")
@click.option("--teacher-steps", default=8, show_default=True, help="Steps to train one without --teacher.")
@click.option("--steps", multiple=True, type=int, help="Compare so many steps a deviation instead; repeatable.")
def main(as_json: bool, teacher: Path | None, teacher_steps: int, steps: tuple[int, ...]) -> None:
    """Measure the target store on the sample scans."""
    keep_freed_memory()
    checkpoint, what = brief_teacher(teacher, teacher_steps)
    with tempfile.TemporaryDirectory() as temporary:
        if steps:
            rows, table = choices_table(checkpoint, Path(temporary), steps)
            click.echo(json.dumps({"choices": rows, "teacher": what}) if as_json else f"targets of: {what}\n\n{table}")
            return
        numbers, table = measure(checkpoint, Path(temporary))
    click.echo(report(numbers, table, what))
    if as_json:
        click.echo(json.dumps({**numbers, "teacher": what}))


if __name__ == "__main__":
    main()
