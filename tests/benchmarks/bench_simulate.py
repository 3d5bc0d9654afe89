"""How long a simulated full-size scan takes on one core, and how its statistics compare with the real scans'.

    python -m tests.benchmarks.bench_simulate [--scans 12] [--seed 0] [--json] [--picture docs/simulator.png]

Real statistics are means over the scans in SCANS_DIR (class shares: over all of SemanticKITTI, from its label map);
simulated ones are means over scans of different streets. Voxels and pillars are those of the 480x360x32 grid.
"""

import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

# One core: set before NumPy loads its threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np

from common.scans.label_map import LabelMap, load_label_map
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import pillars_of
from common.scans.scan_id import ScanId
from common.simulate.dataset import SimulationSettings, simulate_scan, street_of
from tests.benchmarks.simulate_picture import Compared, draw
from tests.golden.golden_files import REPOSITORY, scans_folder
from tests.shared.kitti import has_labels, list_scans, present_sequences, read_points, read_raw_labels

LABEL_MAP = REPOSITORY / "configs/datasets/semantic_kitti.yaml"
RANGES = (0, 3, 5, 7.5, 10, 15, 20, 30, 40, 50, 80)
COUNTS = (1, 2, 3, 5, 9, 17, 33, 65)
"""Where the bins of points per voxel and per pillar begin; the last one is open."""

RINGS = 64


def statistics_of(points: np.ndarray, ring: np.ndarray) -> dict[str, Any]:
    """Numbers of points, voxels and pillars, and shares of them by range, ring and number of points."""
    scan = voxelise(points, PolarGrid.named("polarnet"))
    pillars, pillar_of_voxel = pillars_of(scan.voxels)
    in_voxel = np.bincount(scan.point_voxel)
    in_pillar = np.bincount(pillar_of_voxel, in_voxel).astype(int)
    ranges = np.linalg.norm(points[:, :3], axis=1)
    return {
        "points": len(points),
        "voxels": len(scan.voxels),
        "pillars": len(pillars),
        "points_per_voxel": len(points) / len(scan.voxels),
        "points_per_pillar": len(points) / len(pillars),
        "remission": float(np.median(points[:, 3])),
        "range_shares": np.histogram(ranges, RANGES)[0] / len(points),
        "ring_points": np.bincount(ring, minlength=RINGS)[:RINGS],
        "voxel_shares": _histogram(in_voxel),
        "pillar_shares": _histogram(in_pillar),
    }


def _histogram(counts: np.ndarray) -> np.ndarray:
    return np.histogram(counts, (*COUNTS, np.inf))[0] / len(counts)


def rings_of(points: np.ndarray) -> np.ndarray:
    """Which beam saw each point of a real scan, int [N]: beams follow each other, each once around from straight ahead.

    The few points before a beam's first whole turn count with the first one.
    """
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    begins = np.flatnonzero((azimuth[:-1] < 0) & (azimuth[1:] >= 0) & (points[1:, 0] > 0)) + 1
    begins = begins[np.diff(begins, prepend=-100) >= 100]
    return np.searchsorted(begins, np.arange(len(points)), side="right") - (begins[0] < 100)


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean of each statistic."""
    return {key: np.mean([row[key] for row in rows], axis=0).tolist() for key in rows[0]}


def simulated(settings: SimulationSettings, label_map: LabelMap) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Statistics of one scan of each street, class shares and seconds included; and [N, 5] points with classes."""
    rows, seconds, clouds = [], [], []
    shares = np.zeros(len(label_map.classes))
    for number, (sequence, count) in enumerate(settings.scans.items()):
        street_of(settings, sequence)
        # Time on the processor, which other processes on a shared machine do not stretch as they do the wall clock.
        start = time.process_time()
        scan = simulate_scan(settings, ScanId(sequence, f"{7 * number % count:06d}"))
        seconds.append(time.process_time() - start)
        classes = label_map.to_training(scan.raw_labels)
        rows.append(statistics_of(scan.points, scan.beam))
        shares += np.bincount(classes, minlength=len(shares)) / len(classes) / len(settings.scans)
        clouds.append(np.column_stack((scan.points, classes)))
    table = mean_of(rows) | {"class_shares": shares.tolist()}
    return table | {"seconds_median": statistics.median(seconds), "seconds_worst": max(seconds)}, clouds


def real(label_map: LabelMap) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The same of the real scans, without seconds; points only of labelled scans."""
    root = scans_folder()
    rows, clouds = [], []
    for scan in list_scans(root, present_sequences(root)):
        points = read_points(root, scan)
        rows.append(statistics_of(points, rings_of(points)))
        if has_labels(root, scan):
            classes = label_map.to_training(read_raw_labels(root, scan, len(points)))
            clouds.append(np.column_stack((points, classes)))
    return mean_of(rows) | {"class_shares": label_map.class_shares().tolist()}, clouds


def labels_of(label_map: LabelMap) -> dict[str, list[str]]:
    """Names of the bins of each histogram."""
    counts = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(COUNTS)]
    return {
        "range_shares": [f"{low}-{high} m" for low, high in pairwise(RANGES)],
        "voxel_shares": [*counts, f"{COUNTS[-1]}+"],
        "pillar_shares": [*counts, f"{COUNTS[-1]}+"],
        "class_shares": label_map.names,
    }


def table_lines(compared: Compared) -> list[str]:
    """Both side by side; rings in groups of eight, from the highest beam down."""
    real_table, simulated_table = compared.real, compared.simulated
    lines = [f"{'':28}{'real':>10}{'simulated':>12}"]
    for key in ("points", "voxels", "pillars", "points_per_voxel", "points_per_pillar", "remission"):
        digits = 2 if real_table[key] < 100 else 0
        lines.append(f"{key.replace('_', ' '):28}{real_table[key]:10.{digits}f}{simulated_table[key]:12.{digits}f}")
    for first in range(0, RINGS, 8):
        one, other = (np.mean(table["ring_points"][first : first + 8]) for table in (real_table, simulated_table))
        lines.append(f"{f'points per ring, {first}-{first + 7}':28}{one:10.0f}{other:12.0f}")
    titles = {
        "range_shares": "points at ",
        "voxel_shares": "voxels of points: ",
        "pillar_shares": "pillars of points: ",
    }
    for key, labels in compared.labels.items():
        for label, one, other in zip(labels, real_table[key], simulated_table[key], strict=True):
            lines.append(f"{titles.get(key, '') + label:28}{100 * one:9.3f}%{100 * other:11.3f}%")
    return lines


@click.command()
@click.option("--scans", default=12, show_default=True, help="Streets to simulate one scan of.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw scans and statistics into this PNG.")
def main(scans: int, seed: int, as_json: bool, picture: Path | None) -> None:
    """Time the simulator and print its statistics beside the real scans'."""
    label_map = load_label_map(LABEL_MAP)
    settings = SimulationSettings(seed=seed, scans={f"{number:02d}": 20 for number in range(scans)})
    simulated_table, simulated_clouds = simulated(settings, label_map)
    real_table, real_clouds = real(label_map)
    compared = Compared(real_table, simulated_table, labels_of(label_map))
    if as_json:
        click.echo(json.dumps({"real": real_table, "simulated": simulated_table}))
    else:
        click.echo("\n".join(table_lines(compared)))
        click.echo(
            f"processor seconds per scan, one core: median {simulated_table['seconds_median']:.2f}, "
            f"worst {simulated_table['seconds_worst']:.2f} of {scans}"
        )
    if picture is not None:
        draw(picture, compared, real_clouds[:1], simulated_clouds[:3], label_map)
        click.echo(f"picture: {picture}", err=True)


if __name__ == "__main__":
    main()
