"""Ways to run a student on a CPU, and what each takes and changes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common.base.errors import SettingsError
from common.base.text import count_text
from common.scans.dataset import Dataset, LabelledScan
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.training.metrics import ConfusionMatrix
from common.training.predictor import VoxelLogits, most_likely_class
from stage2_train_student.shipping.graphs import GraphInputs
from stage2_train_student.shipping.sparse_student import SparseStudent
from stage2_train_student.students.polarnet import PolarNet
from stage2_train_student.students.student import Student

EAGER = "eager float32"
INT8 = "onnxruntime int8"
MOST_CHANGED = 0.005
"""Share of points that an engine may label otherwise than eager PyTorch and still be chosen."""


class Engine(NamedTuple):
    """A way to run a student: its name, and the function from a batch of one scan to logits of its voxels."""

    name: str
    logits: VoxelLogits


def torch_engines(student: Student) -> list[Engine]:
    """Those of PyTorch on a CPU, eager float32 first."""
    engines = [Engine(EAGER, lambda batch: student(batch).voxel_logits)]
    if isinstance(student, PolarNet):
        engines.append(Engine("sparse float32", SparseStudent(student)))
        # Without instructions for it bfloat16 takes four times as long as eager float32.
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            engines.append(Engine("sparse bfloat16", SparseStudent(student, torch.bfloat16)))
    return engines


def onnx_engines(folder: Path, threads: int) -> list[Engine]:
    """Those of the graphs in an exported folder; none where it has no graphs.

    Raises:
        SettingsError: onnxruntime is not installed, or a graph is damaged.
    """
    from stage2_train_student.shipping.onnx_files import check_installed

    forms = {"onnxruntime float32": "", INT8: "_int8"}
    forms = {name: form for name, form in forms.items() if (folder / f"map{form}.onnx").is_file()}
    if not forms:
        return []
    check_installed()
    from stage2_train_student.shipping.run_exported import ExportedStudent

    def engine(name: str, form: str) -> Engine:
        with running(folder):
            exported = ExportedStudent(folder, form, threads)

        def logits(batch: ScanBatch) -> torch.Tensor:
            with running(folder):
                return torch.from_numpy(exported.logits(*(part.numpy() for part in GraphInputs.of(batch))))

        return Engine(name, logits)

    return [engine(name, form) for name, form in forms.items()]


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in the graphs of a folder names it.

    Raises:
        SettingsError: instead of what onnxruntime raised.
    """
    try:
        yield
    except Exception as error:
        raise SettingsError(
            f"{folder}: its graphs cannot be run ({type(error).__name__}: {error}). Write the folder again with export."
        ) from error


@dataclass
class Measured:
    """What was measured of a part of the work, or of an engine.

    Seconds of each call; of an engine also the points with another class than by the first one, and a matrix against
    ground truth.
    """

    seconds: list[float] = field(default_factory=list)
    changed: int = 0
    matrix: ConfusionMatrix | None = None

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Keep the time until the context is left."""
        start = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - start)

    def milliseconds(self, quantile: float = 0.5) -> float:
        """A quantile of the times, without the first call, which warms up, where there are more."""
        return 1e3 * float(np.quantile(self.seconds[1:] or self.seconds, quantile))


PARTS = ("reading", "features and voxelising", "labels back to points")
"""Everything but the network."""


@dataclass
class Comparison:
    """Engines side by side on the same scans, and the `PARTS` beside them, by name.

    The first engine is what the others are compared with.
    """

    parts: dict[str, Measured]
    engines: dict[str, Measured]
    points: int = 0
    scans: int = 0
    threads: int = 1

    def count(self, source: LabelledScan, of_engine: dict[str, np.ndarray], classes: int) -> None:
        """Add the points of one scan, given the class of each, uint8 [N], by each engine."""
        first = next(iter(of_engine.values()))
        self.points += len(first)
        self.scans += 1
        for name, labels in of_engine.items():
            measured = self.engines[name]
            measured.changed += int((labels != first).sum())
            if source.labels is not None:
                matrix = ConfusionMatrix.of(source.labels, labels, classes)
                measured.matrix = matrix if measured.matrix is None else measured.matrix + matrix

    def changed(self, name: str) -> float:
        """Share of points to which an engine gives another class than the first does."""
        return self.engines[name].changed / max(self.points, 1)

    def over_first(self, name: str) -> float:
        """Time of an engine over that of the first, median of ratios of calls that followed each other."""
        first, other = next(iter(self.engines.values())).seconds, self.engines[name].seconds
        ratios = [mine / theirs for mine, theirs in zip(other, first, strict=True)]
        return float(np.median(ratios[1:] or ratios))

    def chosen(self) -> str:
        """The fastest engine of those that change at most `MOST_CHANGED` of the points."""
        fit = [name for name in self.engines if self.changed(name) <= MOST_CHANGED]
        return min(fit, key=lambda name: self.engines[name].milliseconds())

    @property
    def before_after_ms(self) -> float:
        """Median milliseconds of everything but the network."""
        return sum(part.milliseconds() for part in self.parts.values())

    def engine_rows(self) -> list[list[str]]:
        """A table: what each engine takes, wins and changes."""
        rows = [["network", "median ms", "99 % ms", "of eager", "points changed", "mIoU"]]
        for name, measured in self.engines.items():
            miou = float("nan") if measured.matrix is None else measured.matrix.mean_iou()
            numbers = [f"{measured.milliseconds():.1f}", f"{measured.milliseconds(0.99):.1f}"]
            numbers += [f"{self.over_first(name):.2f}", f"{100 * self.changed(name):.3f} %"]
            rows.append([name, *numbers, "-" if np.isnan(miou) else f"{100 * miou:.2f}"])
        return rows

    def part_rows(self) -> list[list[str]]:
        """A table: what everything but the network takes."""
        rows = [
            [name, f"{part.milliseconds():.1f}", f"{part.milliseconds(0.99):.1f}"] for name, part in self.parts.items()
        ]
        return [["beside the network", "median ms", "99 % ms"], *rows, ["together", f"{self.before_after_ms:.1f}", ""]]

    def verdict(self) -> str:
        """The engine to choose, and the sensor rates that it keeps up with."""
        name = self.chosen()
        total = self.before_after_ms + self.engines[name].milliseconds()
        rates = " and ".join(f"{rate} Hz: {'yes' if total <= 1e3 / rate else 'no'}" for rate in (10, 20))
        return (
            f"engine: {name}, the fastest that changes at most {100 * MOST_CHANGED} % of the points; with it "
            f"{total:.0f} ms a scan ({rates}), {self.threads} thread{'s' if self.threads > 1 else ''}"
        )


def compare(
    engines: Sequence[Engine], dataset: Dataset, scans: Sequence[ScanId], grid: PolarGrid, repeats: int = 1
) -> Comparison:
    """Run engines on real scans, one after another on each scan, so that a busy machine is so to all of them; with a
    progress bar.

    The first call of each warms up; its time is not counted where there are more.

    Raises:
        DataError: a scan cannot be read.
    """
    found = Comparison({name: Measured() for name in PARTS}, {engine.name: Measured() for engine in engines})
    found.threads = torch.get_num_threads()
    reading, voxelising, labelling = found.parts.values()
    rounds, said = list(product(range(repeats), scans)), f"latency, {count_text(found.threads, 'thread')}"
    for repeat, scan in tqdm(rounds, unit="scan", desc=said, leave=False):
        with reading.timed():
            points = dataset.files.points(scan)
        with voxelising.timed():
            batch = on_grid(points, grid)
        of_engine = {}
        for engine in engines:
            with torch.inference_mode(), found.engines[engine.name].timed():
                logits = engine.logits(batch)
            of_engine[engine.name] = at_points(logits, batch)
        with labelling.timed():
            at_points(logits, batch)
        if repeat == 0:
            found.count(dataset.read(scan), of_engine, dataset.classes)
    return found


def on_grid(points: np.ndarray, grid: PolarGrid) -> ScanBatch:
    """A scan as a batch of its own."""
    return batch_scans([voxelise(points, grid)], grid.shape)


def at_points(logits: torch.Tensor, batch: ScanBatch) -> np.ndarray:
    """The class of each point, uint8 [N], from logits of voxels."""
    return most_likely_class(logits).byte().numpy()[batch.point_voxel.numpy()]
