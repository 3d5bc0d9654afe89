"""Small datasets in the layout of nuScenes-lidarseg: simulated streets, a sensor of 32 beams, five columns, all tables.

The tables hold what nuscenes-devkit reads as well, so that both can be held against each other.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.simulate.dataset import SimulationSettings, simulate_scan
from common.simulate.sensor import SensorSettings

LABEL_MAP = Path(__file__).resolve().parents[2] / "configs/datasets/nuscenes.yaml"
START, APART = 1_532_402_927_000_000, 500_000
"""Time of the first key frame, and between two, microseconds."""

RAW_IDS = {
    **dict.fromkeys((0, 1), 0),
    **dict.fromkeys((10, 252), 17),
    **dict.fromkeys((11, 31, 253), 14),
    **dict.fromkeys((13, 16, 256, 257), 16),
    **dict.fromkeys((15, 32, 255), 21),
    **dict.fromkeys((18, 258), 23),
    **dict.fromkeys((20, 259), 22),
    **dict.fromkeys((30, 254), 2),
    **dict.fromkeys((40, 44, 60), 24),
    48: 26,
    49: 25,
    72: 27,
    99: 12,
    **dict.fromkeys((50, 51, 52, 80, 81), 28),
    **dict.fromkeys((70, 71), 30),
}
"""Ids of the simulator, which are SemanticKITTI's, to ids of nuScenes."""

Tables = dict[str, list[dict[str, Any]]]


def token_of(*parts: object) -> str:
    """A token as nuScenes has them, the same for the same parts."""
    return hashlib.md5(" ".join(map(str, parts)).encode()).hexdigest()


def lidar_token(scene: str, frame: int) -> str:
    """Token of the `sample_data` record of a scan."""
    return token_of(scene, frame, "LIDAR_TOP", True)


def category_names() -> list[str]:
    """Names of the 32 ids, as the comments of the dataset's YAML file have them."""
    lines = (
        LABEL_MAP.read_text().split("learning_map:\n")[1].splitlines()[: len(load_label_map(LABEL_MAP).learning_map)]
    )
    return [line.partition("# ")[2] for line in lines]


def write_nuscenes(
    root: Path, version: str, scenes: Mapping[str, int], columns: int = 96, labelled: bool = True
) -> list[ScanId]:
    """Write a version: tables, scans and, unless it is a test version, labels.

    Args:
        root: gets the folders; other versions may lie there.
        version: such as `v1.0-mini`.
        scenes: number of key frames by scene.
        columns: azimuths of the sensor; a scan has some 25 points for each.
        labelled: whether to write labels.

    Returns:
        the scans in order.
    """
    tables: Tables = {name: [] for name in ("attribute", "visibility", "instance", "sample_annotation", "ego_pose")}
    tables |= {name: [] for name in ("scene", "sample", "sample_data", "lidarseg")}
    channels = ("LIDAR_TOP", "CAM_FRONT")
    tables["sensor"] = [{"token": token_of(name), "channel": name, "modality": name[:5].lower()} for name in channels]
    tables["calibrated_sensor"] = [
        {"token": token_of(name, "calibrated"), "sensor_token": token_of(name)} for name in channels
    ]
    tables["log"] = [{"token": token_of("log"), "logfile": "n015-2018-07-24-11-22-45+0800"}]
    tables["map"] = [{"token": token_of("map"), "log_tokens": [token_of("log")], "filename": "maps/made-up.png"}]
    tables["category"] = [
        {"token": token_of(name), "name": name, "index": index} for index, name in enumerate(category_names())
    ]
    (root / "maps").mkdir(parents=True, exist_ok=True)
    (root / "maps/made-up.png").touch()
    sensor = SensorSettings(beams=32, columns=columns, field_of_view=[(10.7, -30.7)], height=1.84)
    settings = SimulationSettings(scans={f"{n:02d}": count for n, count in enumerate(scenes.values())}, sensor=sensor)
    found = []
    for number, (scene, count) in enumerate(scenes.items()):
        record = {"token": token_of(scene), "name": scene, "log_token": token_of("log"), "nbr_samples": count}
        ends = {"first_sample_token": token_of(scene, 0), "last_sample_token": token_of(scene, count - 1)}
        tables["scene"].append(record | ends)
        for frame in range(count):
            scan = simulate_scan(settings, ScanId(f"{number:02d}", f"{frame:06d}"))
            points = np.column_stack((scan.points, 31 - scan.beam)).astype("<f4")
            points[:, 3] = np.round(255 * points[:, 3])
            labels = np.array([RAW_IDS[raw] for raw in scan.raw_labels & 0xFFFF], np.uint8)
            records = add_sample(tables, scene, frame)
            path = root / records[0]["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            points.tofile(path)
            if labelled:
                path = root / "lidarseg" / version / f"{records[0]['token']}_lidarseg.bin"
                path.parent.mkdir(parents=True, exist_ok=True)
                labels.tofile(path)
                names = {"token": records[0]["token"], "sample_data_token": records[0]["token"]}
                tables["lidarseg"].append(names | {"filename": str(path.relative_to(root))})
            found.append(ScanId(scene, str(records[0]["timestamp"])))
    if not labelled:
        del tables["lidarseg"]
    write_tables(root / version, tables)
    return found


def add_sample(tables: Tables, scene: str, frame: int) -> list[dict[str, Any]]:
    """A key frame in the tables: a sample, and of the lidar and a camera one record each with a sweep after it."""
    time, sample = START + APART * frame, token_of(scene, frame)
    around = {"prev": token_of(scene, frame - 1) if frame else "", "next": token_of(scene, frame + 1)}
    tables["sample"].append({"token": sample, "timestamp": time, "scene_token": token_of(scene)} | around)
    records = []
    for key in (True, False):
        for channel, suffix in (("LIDAR_TOP", ".pcd.bin"), ("CAM_FRONT", ".jpg")):
            at = time + (0 if key else 50_000)
            name = f"{'samples' if key else 'sweeps'}/{channel}/{scene}__{channel}__{at}{suffix}"
            token = token_of(scene, frame, channel, key)
            record: dict[str, Any] = {"token": token, "sample_token": sample, "ego_pose_token": token}
            record |= {"calibrated_sensor_token": token_of(channel, "calibrated"), "timestamp": at}
            record |= {"fileformat": suffix[1:4], "is_key_frame": key, "height": 0, "width": 0}
            records.append(record | {"filename": name, "prev": "", "next": ""})
    # As in nuScenes: the lidar's records stand anywhere among those of the other sensors.
    tables["sample_data"] += reversed(records)
    return records


def write_tables(folder: Path, tables: Tables) -> None:
    """Write tables as nuScenes has them: one field a line, no indentation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=0))
