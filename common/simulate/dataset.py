"""Writes simulated drives in the SemanticKITTI layout: points, labels, poses and calibration."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from common.base.config import Settings, load_settings, write_yaml
from common.base.errors import DataError
from common.base.files import write_atomically
from common.scans.formats.semantic_kitti import label_path, scan_path, write_scan
from common.scans.scan_id import ScanId
from common.scans.sequence_names import Sequences, sequence_name
from common.simulate.layout import make_street
from common.simulate.sensor import Scan, SensorSettings, measure
from common.simulate.street import Street, at_time

SETTINGS_FILE = "simulation.yaml"
"""Kept beside `sequences/`: a folder holds scans of one set of settings only."""

DRIVING_SPEED = 8.0
"""Of the sensor's vehicle, metres per second; sets how far others move between two scans."""

CAMERA_FROM_SENSOR = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
"""KITTI's camera axes: x right, y down, z ahead. The simulated camera sits where the sensor is."""

STREET, TURN = 0, 1
"""Streams of random numbers: one makes a sequence's street, one each of its scans."""


class SimulationSettings(Settings):
    """A simulated dataset.

    Attributes:
        seed: of all streets and scans.
        scans: number of scans by sequence; each sequence is a street of its own. SemanticKITTI trains on 00-07, 09 and
            10, validates on 08 and tests on 11-21.
        spacing: way between two scans, metres.
        unlabelled: sequences without label files, as the benchmark's test sequences are.
        busy: how many times as many persons, riders, cycles, trucks, buses, trams and trailers as usual. Usual is about
            as rare as in SemanticKITTI, where some of these classes hardly occur; more make a small dataset worth more.
        lean: standard deviation of the vehicle's pitch and roll, degrees.
        sensor: the sensor.
    """

    seed: int = Field(0, ge=0)
    scans: dict[str, Annotated[int, Field(ge=0, le=1_000_000)]] = {f"{name:02d}": 20 for name in range(12)}
    spacing: float = Field(4.0, gt=0)
    unlabelled: Sequences = []
    busy: float = Field(1.0, ge=0, le=20)
    lean: float = Field(0.4, ge=0, le=3)
    sensor: SensorSettings = SensorSettings()

    @field_validator("scans", mode="before")
    @classmethod
    def _numbered(cls, scans: object) -> object:
        if not isinstance(scans, dict):
            return scans
        named = {sequence_name(name).zfill(2): count for name, count in scans.items()}
        wrong = [name for name in named if not name.isdecimal()]
        if wrong:
            raise ValueError(f"sequences are numbers such as 00, not {', '.join(wrong)}")
        return named


def street_of(settings: SimulationSettings, sequence: str) -> Street:
    """The street of a sequence; it depends on the seed, the sequence, the length of the drive and `busy` only."""
    return _street(settings.seed, int(sequence), settings.scans[sequence] * settings.spacing, settings.busy)


@lru_cache(maxsize=1)
def _street(seed: int, sequence: int, length: float, busy: float) -> Street:
    return make_street(length, np.random.default_rng((seed, sequence, STREET)), busy)


def sensor_pose(settings: SimulationSettings, street: Street, scan: ScanId) -> np.ndarray:
    """Where the sensor is at a scan, float64 [4, 4]: from its frame (x ahead, y left, z up) to the world's, metres."""
    frame = int(scan.frame)
    steps = np.linalg.norm(np.diff(street.path, axis=0), axis=1)
    travelled = np.concatenate(([0], np.cumsum(steps)))
    place = min(int(np.searchsorted(travelled, frame * settings.spacing)), len(street.path) - 6)
    # The vehicle points along the metre of its way around this place.
    ahead = street.path[place + 5] - street.path[max(place - 5, 0)]
    yaw = np.arctan2(ahead[1], ahead[0])
    generator = np.random.default_rng((settings.seed, int(scan.sequence), TURN, frame, 0))
    pitch, roll = np.radians(settings.lean) * np.clip(generator.standard_normal(2), -3, 3)
    pose = np.eye(4)
    pose[:3, :3] = _about(2, yaw) @ _about(1, pitch) @ _about(0, roll)
    pose[:3, 3] = *street.path[place], settings.sensor.height
    return pose


def simulate_scan(settings: SimulationSettings, scan: ScanId) -> Scan:
    """One scan of a simulated dataset; the same settings always give the same bytes on one version of NumPy."""
    street, frame = street_of(settings, scan.sequence), int(scan.frame)
    pose = sensor_pose(settings, street, scan)
    shapes = at_time(street, frame * settings.spacing / DRIVING_SPEED, pose[:2, 3])
    generator = np.random.default_rng((settings.seed, int(scan.sequence), TURN, frame, 1))
    return measure(settings.sensor, street, shapes, pose, generator)


def all_scans(settings: SimulationSettings) -> list[ScanId]:
    """The scans of a dataset, in order."""
    return [ScanId(name, f"{frame:06d}") for name, count in settings.scans.items() for frame in range(count)]


def missing_scans(settings: SimulationSettings, root: Path) -> list[ScanId]:
    """Scans that are not on disk yet, in order.

    Raises:
        DataError: the folder holds something else than a dataset of these settings.
    """
    kept = root / SETTINGS_FILE
    if kept.is_file():
        if load_settings(SimulationSettings, kept) != settings:
            raise DataError(
                f"{root}: was simulated with other settings, see {kept}. Choose another folder with --out, or remove "
                "this one."
            )
    elif (root / "sequences").exists():
        raise DataError(f"{root}: holds sequences that were not simulated here. Choose another folder with --out.")

    def is_whole(scan: ScanId) -> bool:
        labelled = scan.sequence in settings.unlabelled or label_path(root, scan).is_file()
        return labelled and scan_path(root, scan).is_file()

    return [scan for scan in all_scans(settings) if not is_whole(scan)]


def write_dataset(settings: SimulationSettings, root: Path, jobs: int = 1) -> Iterator[ScanId]:
    """Write the scans that are missing, each file whole or not at all; yields each scan once it is on disk.

    `root` gets `sequences/` and `simulation.yaml`; so many processes simulate.

    Raises:
        DataError: see `missing_scans`.
    """
    missing = missing_scans(settings, root)
    write_yaml(settings, root / SETTINGS_FILE)
    for sequence in dict.fromkeys(scan.sequence for scan in missing):
        _write_drive(settings, root, sequence)
    if jobs == 1:
        for scan in missing:
            _write_scan(settings, root, scan)
            yield scan
        return
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        pending = {pool.submit(_write_scan, settings, root, scan): scan for scan in missing}
        for done in as_completed(pending):
            done.result()
            yield pending[done]
    finally:
        # Where the caller stops, the processes stop at the next scan.
        pool.shutdown(cancel_futures=True)


def _write_scan(settings: SimulationSettings, root: Path, scan: ScanId) -> None:
    simulated = simulate_scan(settings, scan)
    write_scan(root, scan, simulated.points, None if scan.sequence in settings.unlabelled else simulated.raw_labels)


def _write_drive(settings: SimulationSettings, root: Path, sequence: str) -> None:
    """`poses.txt` and `calib.txt`: camera poses relative to the first scan, and the camera from the sensor."""
    street = street_of(settings, sequence)
    scans = [scan for scan in all_scans(settings) if scan.sequence == sequence]
    poses = [sensor_pose(settings, street, scan) for scan in scans]
    first, back = np.linalg.inv(poses[0]), np.linalg.inv(CAMERA_FROM_SENSOR)
    lines = [_numbers(CAMERA_FROM_SENSOR @ first @ pose @ back) for pose in poses]
    calibration = [f"P{camera}: {_numbers(np.eye(4))}" for camera in range(4)] + [f"Tr: {_numbers(CAMERA_FROM_SENSOR)}"]
    folder = root / "sequences" / sequence
    for name, text in (("poses.txt", lines), ("calib.txt", calibration)):
        write_atomically(folder / name, ("\n".join(text) + "\n").encode())


def _numbers(matrix: np.ndarray) -> str:
    return " ".join(f"{value:.9e}" for value in matrix[:3].ravel())


def _about(axis: int, angle: float) -> np.ndarray:
    """Rotation about the axis x, y or z."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    rotation = np.eye(3)
    rotation[one, one] = rotation[two, two] = np.cos(angle)
    rotation[two, one] = np.sin(angle)
    rotation[one, two] = -rotation[two, one]
    return rotation
