"""Scans of a simulated street with everything in them that people trip over, or with some of it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from common.simulate.dataset import SimulationSettings, all_scans, simulate_scan
from common.simulate.sensor import Scan, SensorSettings

BRIGHTEST = 200
SCANS = "drives/{sequence}/points/{frame}.bin"
LABELS = "drives/{sequence}/labels/{frame}.label"


@dataclass(frozen=True)
class Planted:
    """What is wrong with a set; each is a fault of its own.

    Attributes:
        view: only points ahead of the sensor, half a circle.
        reflectance: in 0..200.
        origin: a fifth of the points at (0, 0, 0), without labels.
        labels: half of the others unlabelled.
        ground: the sensor 60 cm lower.
        columns: a fifth column, the ring.
    """

    view: bool = True
    reflectance: bool = True
    origin: bool = True
    labels: bool = True
    ground: bool = True
    columns: bool = True


@cache
def drive(lower: bool) -> dict[tuple[str, str], Scan]:
    """Scans of two streets, dense enough to pass for a sensor of 64 beams."""
    sensor = SensorSettings(columns=800, height=1.13 if lower else 1.73)
    settings = SimulationSettings(scans={"00": 3, "01": 1}, spacing=8.0, sensor=sensor)
    return {(scan.sequence, scan.frame): simulate_scan(settings, scan) for scan in all_scans(settings)}


def write_planted(root: Path, planted: Planted) -> None:
    """Write a set: `drives/00/points/000000.bin` and `drives/00/labels/000000.label`."""
    for number, ((sequence, frame), scan) in enumerate(drive(planted.ground).items()):
        rows, raw = spoiled(scan, planted, np.random.default_rng(number))
        for pattern, values in ((SCANS, rows.astype("<f4")), (LABELS, raw.astype("<u4"))):
            path = root / pattern.format(sequence=sequence, frame=frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            values.tofile(path)


def spoiled(scan: Scan, planted: Planted, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows float32 [N, 4 or 5] and raw labels uint32 [N] of a scan with faults."""
    kept = scan.points[:, 0] >= 0 if planted.view else np.ones(len(scan.points), bool)
    rows, raw = np.column_stack((scan.points, scan.beam))[kept].astype(np.float32), scan.raw_labels[kept].copy()
    if planted.reflectance:
        rows[:, 3] = np.round(rows[:, 3] * BRIGHTEST)
    if planted.labels:
        raw[generator.random(len(raw)) < 0.5] = 0
    if planted.origin:
        nothing = generator.random(len(raw)) < 0.2
        rows[nothing, :4], raw[nothing] = 0, 0
    return rows if planted.columns else rows[:, :4], raw
