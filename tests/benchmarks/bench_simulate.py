"""How long a simulated full-size scan takes on one core, and how its statistics compare with the real scans'.

    python -m tests.benchmarks.bench_simulate [--scans 12] [--seed 0] [--json] [--picture simulated.png]

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

from common.label_map import LabelMap, load_label_map
from common.polar_grid import PolarGrid, voxelise
from common.scan_batch import pillars_of
from common.semantic_kitti import ScanId, has_labels, list_scans, present_sequences, read_points, read_raw_labels
from common.simulate.dataset import SimulationSettings, simulate_scan, street_of
from tests.golden.golden_files import REPOSITORY, scans_folder

LABEL_MAP = REPOSITORY / "configs/datasets/semantic_kitti.yaml"
RANGES = (0, 3, 5, 7.5, 10, 15, 20, 30, 40, 50, 80)
ELEVATIONS = tuple(range(-26, 6, 2))


def statistics_of(points: np.ndarray) -> dict[str, Any]:
    """Numbers of points, voxels and pillars, and shares of the points by range and by elevation."""
    voxels = voxelise(points, PolarGrid.named("polarnet")).voxels
    ranges = np.linalg.norm(points[:, :3], axis=1)
    elevations = np.degrees(np.arcsin(points[:, 2] / ranges))
    return {
        "points": len(points),
        "voxels": len(voxels),
        "pillars": len(pillars_of(voxels)[0]),
        "points_per_voxel": len(points) / len(voxels),
        "remission": float(np.median(points[:, 3])),
        "range_shares": np.histogram(ranges, RANGES)[0] / len(points),
        "elevation_shares": np.histogram(elevations, ELEVATIONS)[0] / len(points),
    }


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
        rows.append(statistics_of(scan.points))
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
        rows.append(statistics_of(points))
        if has_labels(root, scan):
            classes = label_map.to_training(read_raw_labels(root, scan, len(points)))
            clouds.append(np.column_stack((points, classes)))
    return mean_of(rows) | {"class_shares": label_map.class_shares().tolist()}, clouds


def table_lines(real_table: dict[str, Any], simulated_table: dict[str, Any], names: list[str]) -> list[str]:
    """Both side by side."""
    lines = [f"{'':24}{'real':>10}{'simulated':>12}"]
    for key in ("points", "voxels", "pillars", "points_per_voxel", "remission"):
        digits = 2 if real_table[key] < 100 else 0
        lines.append(f"{key:24}{real_table[key]:10.{digits}f}{simulated_table[key]:12.{digits}f}")
    labelled = {
        "range_shares": [f"range {low}-{high} m" for low, high in pairwise(RANGES)],
        "elevation_shares": [f"beams {low}..{high} deg" for low, high in pairwise(ELEVATIONS)],
        "class_shares": names,
    }
    for key, labels in labelled.items():
        for label, one, other in zip(labels, real_table[key], simulated_table[key], strict=True):
            lines.append(f"{label:24}{100 * one:9.2f}%{100 * other:11.2f}%")
    return lines


def draw(
    path: Path,
    tables: tuple[dict[str, Any], dict[str, Any]],
    clouds: tuple[list[np.ndarray], list[np.ndarray]],
    label_map: LabelMap,
) -> None:
    """One picture: a real and three simulated scans from above and as range images, and the statistics as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = np.array([info.colour for info in label_map.classes]) / 255
    colours[0] = 0.5
    shown = [*clouds[0][:1], *clouds[1][:3]]
    titles = ["real"] * len(clouds[0][:1]) + ["simulated"] * len(clouds[1][:3])
    figure = plt.figure(figsize=(5 * len(shown), 14))
    layout = figure.add_gridspec(3 + len(shown), len(shown), height_ratios=[5, *[1] * len(shown), 2.2, 2.2])
    for column, (cloud, title) in enumerate(zip(shown, titles, strict=True)):
        axis = figure.add_subplot(layout[0, column], facecolor="black", xlim=(-40, 40), ylim=(-40, 40), aspect="equal")
        cloud = cloud[np.argsort(cloud[:, 2])]
        axis.scatter(cloud[:, 0], cloud[:, 1], s=0.2, c=colours[cloud[:, 4].astype(int)], linewidths=0)
        axis.set(title=title, xticks=[], yticks=[])
        axis = figure.add_subplot(layout[1 + column, :], xticks=[], yticks=[], ylabel=title)
        axis.imshow(_range_image(cloud, colours), aspect="auto")
    row = 1 + len(shown)
    places = [(layout[row, :2], "range_shares", [f"{low} m" for low in RANGES[:-1]]),
              (layout[row, 2:], "elevation_shares", [f"{low}°" for low in ELEVATIONS[:-1]]),
              (layout[row + 1, :], "class_shares", label_map.names)]  # fmt: skip
    for place, key, labels in places:
        axis = figure.add_subplot(place)
        x = np.arange(len(labels))
        for shift, table, name in ((-0.2, tables[0], "real"), (0.2, tables[1], "simulated")):
            axis.bar(x + shift, 100 * np.array(table[key]), 0.4, label=name)
        axis.set_xticks(x, labels, rotation=25, ha="right")
        axis.set_ylabel("% of points")
        axis.legend()
        if key == "class_shares":
            axis.set_yscale("log")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def _range_image(cloud: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Classes by elevation and azimuth, nearest points on top, [64, 1000, 3]."""
    ranges = np.linalg.norm(cloud[:, :3], axis=1)
    cloud = cloud[np.argsort(-ranges)]
    elevation = np.degrees(np.arctan2(cloud[:, 2], np.linalg.norm(cloud[:, :2], axis=1)))
    azimuth = np.arctan2(cloud[:, 1], cloud[:, 0])
    image = np.zeros((64, 1000, 3))
    row = np.clip((3 - elevation) / 28 * 64, 0, 63).astype(int)
    column = np.clip((np.pi - azimuth) / (2 * np.pi) * 1000, 0, 999).astype(int)
    image[row, column] = colours[cloud[:, 4].astype(int)]
    return image


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
    if as_json:
        click.echo(json.dumps({"real": real_table, "simulated": simulated_table}))
    else:
        click.echo("\n".join(table_lines(real_table, simulated_table, label_map.names)))
        click.echo(
            f"processor seconds per scan, one core: median {simulated_table['seconds_median']:.2f}, "
            f"worst {simulated_table['seconds_worst']:.2f} of {scans}"
        )
    if picture is not None:
        draw(picture, (real_table, simulated_table), (real_clouds, simulated_clouds), label_map)


if __name__ == "__main__":
    main()
