"""How long datasets take to open and to read: nuScenes at the size of v1.0-trainval, with made-up tables.

    python -m tests.benchmarks.bench_formats [--json] [--samples 34149] [--folder FOLDER]

The tables have as many records and fields as the real ones (2.6 million of `sample_data`, 1.3 GB) and are removed at
the end. A process of its own opens the dataset, first from the tables and then, another one, from the cache: seconds
until all scans are listed, and the most memory that it held. A scan of nuScenes's size is read, with labels, and put on
the published grid: the median of many.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.base.command_options import path_type
from common.scans.dataset import Dataset, GridSettings, voxelise_view
from common.scans.label_map import load_label_map
from common.scans.view import IDENTITY
from tests.shared.nuscenes_writer import LABEL_MAP, lidar_token, token_of, write_tables

SAMPLES, SWEEPS = 34_149, 77
"""Key frames of v1.0-trainval, and records of `sample_data` for each: twelve sensors, most of them faster."""

SCENES = 850
POINTS = 34_720
REPEATS = 50
GOALS = {"first opening": "15 s, 2 GB", "second opening": "1 s", "read and voxelise": "0.012 s"}
CHANNELS = ("LIDAR_TOP", "CAM_FRONT", "CAM_BACK", "RADAR_FRONT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")


def records_of(scene: str, frame: int) -> Iterator[str]:
    """The records of `sample_data` for a key frame, as text; half of those of the real tables are radar's."""
    sample, time_of = token_of(scene, frame), 1_532_402_927_000_000 + 500_000 * frame
    for number in range(SWEEPS):
        key, channel = number < len(CHANNELS), CHANNELS[number % len(CHANNELS)]
        token = lidar_token(scene, frame) if number == 0 else f"{number:032x}"
        name = f"{scene}-2018-07-24-11-22-45+0800__{channel}__{time_of + 6000 * number}.pcd.bin"
        yield (
            f'{{\n"token": "{token}",\n"sample_token": "{sample}",\n"ego_pose_token": "{token}",\n'
            f'"calibrated_sensor_token": "{sample}",\n"timestamp": {time_of + 6000 * number},\n"fileformat": "pcd",\n'
            f'"is_key_frame": {str(key).lower()},\n"height": 0,\n"width": 0,\n'
            f'"filename": "{"samples" if key else "sweeps"}/{channel}/{name}",\n"prev": "{sample}",\n"next": ""\n}}'
        )


def write_large(root: Path, samples: int) -> int:
    """Tables of so many key frames, empty files for their scans, one whole scan with labels; the records written."""
    scenes = load_label_map(LABEL_MAP).sequences(["train", "val"])
    frames = [(scenes[number % SCENES], number // SCENES) for number in range(samples)]
    folder, lidar = root / "v1.0-trainval", root / "samples/LIDAR_TOP"
    fields = {"log_token": "0" * 32, "nbr_samples": 40, "description": "made up"}
    tables = {"scene": [{"token": token_of(scene), "name": scene} | fields for scene in scenes]}
    tables["sample"] = [
        {"token": token_of(*item), "timestamp": 0, "prev": "", "next": "", "scene_token": token_of(item[0])}
        for item in frames
    ]
    write_tables(folder, tables)
    lidar.mkdir(parents=True)
    with (folder / "sample_data.json").open("w") as file:
        file.write("[\n")
        for number, item in enumerate(frames):
            records = list(records_of(*item))
            file.write(",\n" * (number > 0) + ",\n".join(records))
            (lidar / Path(json.loads(records[0])["filename"]).name).touch()
        file.write("\n]")
    labels = root / "lidarseg/v1.0-trainval"
    labels.mkdir(parents=True)
    generator = np.random.default_rng(0)
    cloud = generator.normal(0, (15, 15, 2, 40, 0), (POINTS, 5)).astype("<f4")
    cloud[:, 3:] = np.stack((np.abs(cloud[:, 3]).round(), generator.integers(0, 32, POINTS)), axis=1)
    cloud.tofile(next(lidar.glob(f"{scenes[0]}-*__1532402927000000.pcd.bin")))
    generator.integers(0, 32, POINTS, np.uint8).tofile(labels / f"{lidar_token(scenes[0], 0)}_lidarseg.bin")
    return samples * SWEEPS


def open_once(root: Path) -> dict[str, float]:
    """Seconds until all scans of the splits are listed, and the most memory of this process, GB."""
    label_map = load_label_map(LABEL_MAP)
    start = time.perf_counter()
    scans = Dataset.open(root, label_map).select(["train", "val"]).scans
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak_gb": peak / 1e9, "scans": len(scans)}


def read_and_voxelise(root: Path) -> float:
    """Median seconds for a scan with labels on the published grid."""
    label_map, grid = load_label_map(LABEL_MAP), GridSettings(volume="nuscenes").grid()
    dataset, seconds = Dataset.open(root, label_map), []
    scan = dataset.files.scans([label_map.splits["train"][0]])[0]
    for _ in range(REPEATS):
        start = time.perf_counter()
        voxelise_view(dataset.read(scan), IDENTITY, grid, label_map)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(root: Path, samples: int) -> dict[str, Any]:
    """All numbers."""
    records = write_large(root, samples)
    words = [sys.executable, "-m", "tests.benchmarks.bench_formats", "--open", str(root)]
    found: dict[str, Any] = {"records": records}
    found["table_gb"] = (root / "v1.0-trainval/sample_data.json").stat().st_size / 1e9
    for name in ("first opening", "second opening"):
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment(root))
        found[name] = json.loads(done.stdout)
    found["read and voxelise"] = {"seconds": read_and_voxelise(root)}
    return found


def environment(root: Path) -> dict[str, str]:
    """Of the process that opens: its caches lie beside the made-up dataset."""
    return os.environ | {"XDG_CACHE_HOME": str(root / "caches")}


@click.command()
@click.option("--samples", default=SAMPLES, show_default=True, help="Key frames.")
@click.option("--folder", type=path_type, help="Where the made-up dataset lies meanwhile.  [default: the system's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--open", "opened", type=path_type, hidden=True)
def main(samples: int, folder: Path | None, as_json: bool, opened: Path | None) -> None:
    """Measure and print."""
    if opened is not None:
        click.echo(json.dumps(open_once(opened)))
        return
    with tempfile.TemporaryDirectory(dir=folder) as made:
        found = measure(Path(made), samples)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"nuScenes, {samples:,} key frames, {found['records']:,} records, {found['table_gb']:.2f} GB of sample_data"
    )
    for name, goal in GOALS.items():
        memory = f", {found[name]['peak_gb']:.2f} GB" if "peak_gb" in found[name] else ""
        click.echo(f"  {name:18} {found[name]['seconds']:7.4f} s{memory}  (goal: {goal})")


if __name__ == "__main__":
    main()
