"""What the parts of `bench_gpu` share: the device, the size, golden networks, clocks."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.base.config import load_settings
from common.base.devices import set_float32_precision
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.targets.teacher import Precision
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher
from stage2_train_student.settings import ExperimentSettings
from tests.golden.golden_files import golden_weights, label_map, scans_folder
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import CONFIGS, DATASET, REDUCED_STUDENT, STREET_GRID

CACHED = ("down1c", "down3c", "up4e", "up2e", "up0e")
"""Teacher layers that a student reads."""

REDUCED_DUMP = (f"grid.shape={list(STREET_GRID)}",)
REDUCED_TRAINING = (*REDUCED_DUMP, *REDUCED_STUDENT, "student.width=16", "student.max_points_per_pillar=100000")


@dataclass(frozen=True)
class Bench:
    """Where and at which size everything is measured.

    Attributes:
        device: a GPU; or a CPU, on which the same program runs.
        reduced: the reduced golden networks on a small grid, and made-up streets instead of the sample scans.
        folder: for stores and checkpoints.
        repeats: of what is timed.
        views: of each scan that is dumped.
    """

    device: torch.device
    reduced: bool
    folder: Path
    repeats: int = 10
    views: int = 10

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def size(self) -> str:
        """Name of the size in the golden folder."""
        return "reduced" if self.reduced else "full"

    @property
    def checkpoint(self) -> Path:
        """The golden teacher in the published layout, written at the first call."""
        path = self.folder / "teacher.pt"
        if not path.exists():
            torch.save(golden_weights(f"teacher_{self.size}"), path)
        return path

    @property
    def data(self) -> Path:
        """Folder of the scans; made-up ones are written at the first call."""
        if not self.reduced:
            return scans_folder()
        path = self.folder / "streets"
        if not path.exists():
            write_dataset(path, {"00": 2})
        return path

    @property
    def dataset(self) -> Dataset:
        """The scans."""
        return Dataset.open(self.data, label_map())

    @property
    def scans(self) -> list[ScanId]:
        """Scans with labels."""
        return self.dataset.select(["00"]).scans

    def teacher(self, precision: Precision = "float32") -> Cylinder3DTeacher:
        """The golden teacher on the device; spconv and PyTorch compute in the precision from here on."""
        set_float32_precision(tf32=precision == "tf32")
        return Cylinder3DTeacher.load(self.checkpoint, self.device).in_precision(precision)

    def experiment(self, targets: str, *overrides: str) -> ExperimentSettings:
        """The published experiment on the sample scans."""
        off = [f"distillation.{term}=0" for term in ("logit", "vpd", "lwd")] if targets == "none" else []
        words = [f"dataset={DATASET}", "train=['00']", "validate_on=[]", f"targets={targets}", *off]
        words += [*(REDUCED_TRAINING if self.reduced else ()), *overrides]
        return load_settings(ExperimentSettings, CONFIGS / "experiments/full.yaml", words)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, call: Callable[[], Any], repeats: int | None = None, warm: int = 3) -> float:
        """Median time of a call, the device's work included."""
        times = []
        warm = min(warm, self.repeats)
        for _ in range(warm + (repeats or self.repeats)):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times[warm:])
