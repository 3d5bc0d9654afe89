"""How long one real scan takes a student on this CPU, by engine, and what faster engines and eight bits change.

    python -m tests.benchmarks.bench_latency [--json] [--repeats 3] [--run runs/demo/full/seed0 --data data/demo]

Times are those of students of random weights, width 64 and 16, at full size on a real scan: they do not depend on the
weights. What an engine changes does: it is measured with a trained student, the demo's where it is there, otherwise
with random weights, which change more. Machines are noisy: engines take turns, so read the ratios.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import onnxruntime
import torch

from common.base.config import load_settings, write_yaml
from common.base.devices import CPU
from common.base.memory import keep_freed_memory
from common.base.text import aligned_table
from common.scans.dataset import Dataset, open_dataset
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.shipping.engines import (
    EAGER,
    INT8,
    MOST_CHANGED,
    Comparison,
    compare,
    on_grid,
    onnx_engines,
    torch_engines,
)
from stage2_train_student.shipping.export import export
from stage2_train_student.shipping.graphs import GraphInputs
from stage2_train_student.training.experiment import new_student
from stage2_train_student.training.runs import load_student, run_settings, run_weights
from tests.golden.golden_files import REPOSITORY, label_map, scans_folder

WIDTHS = (64, 16)


def random_run(folder: Path, width: int) -> Path:
    """A run of full size whose student has random weights, and statistics of batch norms that spread its logits."""
    settings = load_settings(
        ExperimentSettings, REPOSITORY / "configs/experiments/baseline.yaml", [f"student.width={width}"]
    )
    torch.manual_seed(0)
    student = new_student(settings, label_map())
    folder.mkdir()
    torch.save(student.state_dict(), folder / "student_best.pt")
    write_yaml(settings, folder / "settings.yaml")
    return folder


def measured(run: Path, data: Dataset, folder: Path, repeats: int, scan: int) -> Comparison:
    """All engines on a scan of some number, eight bits calibrated on the first."""
    exported = folder / f"{run.name}_exported"
    export(run, exported, "none", calibration=data, scans=1)
    settings = run_settings(exported)
    student, _ = load_student(settings, run_weights(exported), CPU)
    scans = [data.select(data.files.sequences()).scans[scan]]
    engines = [*torch_engines(student), *onnx_engines(exported, torch.get_num_threads())]
    return compare(engines, data, scans, settings.grid.grid(), 1 + repeats)


def parity(exported: Path, data: Dataset) -> dict[str, float]:
    """How far `student.onnx` is from PyTorch on a scan, and both from float64: largest differences of logits.

    PyTorch's own rounding may be the larger one, so what counts is how far the graph is from float64.
    """
    settings = run_settings(exported)
    student, _ = load_student(settings, run_weights(exported), CPU)
    batch = on_grid(data.files.points(data.select(["00"]).scans[0]), settings.grid.grid())
    exact_batch = replace(batch, point_features=batch.point_features.double())
    with torch.inference_mode():
        expected = student(batch).voxel_logits.numpy()
        exact = student.double()(exact_batch).voxel_logits.numpy()
    inputs = {name: part.numpy() for name, part in GraphInputs.of(batch)._asdict().items()}
    [found] = onnxruntime.InferenceSession(exported / "student.onnx").run(None, inputs)
    return {
        "onnx_largest_difference": float(abs(found - expected).max()),
        "onnx_from_float64": float(abs(found - exact).max()),
        "eager_from_float64": float(abs(expected - exact).max()),
        "onnx_other_classes": float((found[:, 1:].argmax(1) != expected[:, 1:].argmax(1)).mean()),
    }


def summary(times: Comparison, changes: Comparison) -> dict[str, Any]:
    """The numbers of one student; the best engine is the fastest of those that change little."""
    fit = [name for name in times.engines if changes.changed(name) <= MOST_CHANGED]
    best = min(fit, key=times.over_first)
    return {
        "before_after_network_ms": times.before_after_ms,
        "eager_ms": times.engines[EAGER].milliseconds(),
        "best": best,
        "best_ms": times.engines[best].milliseconds(),
        "best_over_eager": times.over_first(best),
        "changed_points": changes.changed(best),
        "int8_ms": times.engines[INT8].milliseconds(),
        "int8_over_eager": times.over_first(INT8),
        "int8_changed_points": changes.changed(INT8),
    }


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object in the last line.")
@click.option("--repeats", default=3, help="Calls of each engine after one that warms up.")
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/demo/full/seed0"), help="Trained student.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data/demo"), help="Scans for it.")
@click.option("--widths", type=int, multiple=True, default=WIDTHS, help="Of the students that are timed.")
def main(as_json: bool, repeats: int, run: Path, data: Path, widths: tuple[int, ...]) -> None:
    keep_freed_memory()
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, real = Path(name), Dataset.open(scans_folder(), label_map())
        trained = None
        if run.is_dir():
            own = open_dataset(data, run_settings(run).dataset)
            trained = measured(run, own, folder, 0, -1)
            numbers |= {f"trained_{key}": value for key, value in parity(folder / f"{run.name}_exported", own).items()}
            click.echo("\n".join([f"{run}:", *(f"  {key:34}{value}" for key, value in numbers.items())]))
        for width in widths:
            times = measured(random_run(folder / f"width_{width}", width), real, folder, repeats, 0)
            found = summary(times, trained or times) | {"changes_of": str(run) if trained else "random weights"}
            found |= parity(folder / f"width_{width}_exported", real)
            numbers |= found if width == WIDTHS[0] else {f"width_{width}": found}
            click.echo(f"width {width}, {torch.get_num_threads()} threads; changes: {found['changes_of']}")
            click.echo("\n".join([*aligned_table(times.part_rows()), *aligned_table(times.engine_rows())]))
            click.echo("\n".join(f"  {key:34}{value}" for key, value in found.items()))
    if as_json:
        click.echo(json.dumps(numbers))


if __name__ == "__main__":
    main()
