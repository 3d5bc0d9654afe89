"""Tiny datasets in the SemanticKITTI layout: a made-up street of ground, vegetation, buildings and cars."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId

SENSOR_HEIGHT = 1.73
ROAD, TERRAIN, VEGETATION, BUILDING, CAR, UNLABELLED = 40, 72, 70, 50, 10, 0


def street_scan(points: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One scan of a made-up street.

    Args:
        points: number of points N.
        seed: of the scene.

    Returns:
        float32 [N, 4] (x, y, z in metres with the sensor at the origin, remission in 0..1), some points beyond every
        volume; uint32 [N] raw labels, cars with an instance id in the high 16 bits.
    """
    generator = np.random.default_rng(seed)
    rho = np.exp(generator.uniform(np.log(2.0), np.log(75.0), points))
    phi = generator.uniform(-np.pi, np.pi, points)
    x, y = rho * np.cos(phi), rho * np.sin(phi)
    z = generator.normal(-SENSOR_HEIGHT, 0.05, points)
    raw = np.where(np.abs(y) < 6, ROAD, TERRAIN).astype(np.uint32)

    tall = (np.abs(y) > 9) & (generator.uniform(size=points) < 0.6)
    z[tall] = generator.uniform(-SENSOR_HEIGHT, 6.0, int(tall.sum()))
    raw[tall] = np.where(x[tall] > 0, VEGETATION, BUILDING)

    for instance in range(1, 4):
        centre = np.array([generator.uniform(-25, 25), generator.choice((-4.0, 4.0))])
        inside = (np.abs(x - centre[0]) < 2.2) & (np.abs(y - centre[1]) < 0.9)
        z[inside] = generator.uniform(-SENSOR_HEIGHT, -0.2, int(inside.sum()))
        raw[inside] = CAR | instance << 16

    raw[generator.uniform(size=points) < 0.03] = UNLABELLED
    remission = generator.uniform(0.0, 1.0, points)
    return np.stack((x, y, z, remission), axis=1).astype(np.float32), raw


def write_scan(root: Path, scan: ScanId, points: np.ndarray, raw_labels: np.ndarray | None = None) -> None:
    """Write one scan, and its label file unless `raw_labels` is None."""
    scan_path(root, scan).parent.mkdir(parents=True, exist_ok=True)
    points.astype("<f4").tofile(scan_path(root, scan))
    if raw_labels is not None:
        label_path(root, scan).parent.mkdir(parents=True, exist_ok=True)
        raw_labels.astype("<u4").tofile(label_path(root, scan))


def write_dataset(
    root: Path,
    scans: Mapping[str, int],
    points: int = 1500,
    seed: int = 0,
    unlabelled: tuple[str, ...] = (),
) -> list[ScanId]:
    """Write a dataset of made-up streets.

    Args:
        root: gets `sequences/`.
        scans: number of scans by sequence name.
        points: of each scan.
        seed: of the first scan; each scan has its own scene.
        unlabelled: sequences that get no label files, like the benchmark's test sequences.

    Returns:
        the scans in order.
    """
    written: list[ScanId] = []
    for sequence, count in scans.items():
        for frame in range(count):
            scan = ScanId(sequence, f"{frame:06d}")
            cloud, raw = street_scan(points, seed + len(written))
            write_scan(root, scan, cloud, None if sequence in unlabelled else raw)
            written.append(scan)
    return written
