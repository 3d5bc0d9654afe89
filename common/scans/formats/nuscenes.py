"""Scans and labels of nuScenes-lidarseg as they are downloaded: `v1.0-*/*.json`, `samples/LIDAR_TOP/`, `lidarseg/`.

A sequence is a scene, by its name (`scene-0061`). A frame is a key frame of the lidar, by its time in microseconds,
which ends the name of its file.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.base.config import Settings, parse_settings
from common.base.errors import DataError, SettingsError
from common.scans.formats.nuscenes_tables import LIDAR, TABLES, KeyFrame, key_frames
from common.scans.label_map import LabelMap
from common.scans.point_checks import check_points
from common.scans.scan_files import ScanFiles, is_there, names_in, read_bytes
from common.scans.scan_id import ScanId

COLUMNS = 5
"""float32: x, y, z in metres, intensity in 0..255, ring."""

RINGS = 32
META = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
"""What a submission says it used; students of this project see the lidar alone."""


class NuScenesOptions(Settings):
    """The `options` of a dataset whose format is `nuscenes`: the folder of the tables, such as `v1.0-mini`, or several;
    None for all that lie below DATA."""

    version: str | list[str] | None = None


class Scene(NamedTuple):
    """A scene: the version whose tables list it, and its key frames by time."""

    version: str
    frames: dict[str, KeyFrame]


class NuScenes(ScanFiles):
    """nuScenes-lidarseg, see `NuScenesOptions`."""

    name = "nuscenes"

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        self.root = root
        self.options = parse_settings(NuScenesOptions, dict(options), "options of the dataset's format 'nuscenes'")

    def sequences(self) -> list[str]:
        """See `ScanFiles`. Scenes of which no file is here are left out."""
        on_disk, scenes = self._on_disk, self._scenes.items()
        found = [name for name, scene in scenes if any(frame.file in on_disk for frame in scene.frames.values())]
        if not found:
            raise DataError(
                f"{self.root / LIDAR}: holds no scan that the tables list. Extract the key frames of the lidar here "
                "(v1.0-mini.tgz, or the v1.0-trainval and v1.0-test file blobs)."
            )
        return sorted(found)

    def scans(self, sequences: Iterable[str]) -> list[ScanId]:
        scans: list[ScanId] = []
        for sequence in sequences:
            frames = self._scene(sequence).frames
            found = [ScanId(sequence, time) for time, frame in frames.items() if frame.file in self._on_disk]
            if not found:
                raise self.missing(f"{self.root / LIDAR}: none of the {len(frames)} scans of {sequence} is here")
            scans += found
        return scans

    def not_on_disk(self, sequences: Iterable[str]) -> list[str]:
        wanted = [frame.file for sequence in sequences for frame in self._scene(sequence).frames.values()]
        return [f"{LIDAR}{file}" for file in wanted if file not in self._on_disk]

    def points(self, scan: ScanId) -> np.ndarray:
        """See `ScanFiles`. The remission is the intensity as it is stored, 0..255."""
        path = self.root / LIDAR / self._key_frame(scan).file
        data = read_bytes(path)
        if not data or len(data) % (4 * COLUMNS):
            raise DataError(
                f"{path}: {len(data)} bytes are not a whole number of points of {4 * COLUMNS} bytes (x, y, z, "
                "intensity, ring as float32); the file is truncated or no scan of nuScenes. Extract it again."
            )
        columns = np.frombuffer(data, "<f4").reshape(-1, COLUMNS)
        points = np.ascontiguousarray(columns[:, :4])
        check_points(points, path)
        ring = columns[:, 4]
        with np.errstate(invalid="ignore"):
            is_ring = ring.astype(np.uint8) == ring
        if not is_ring.all() or ring.max() >= RINGS:
            raise DataError(
                f"{path}: the fifth number of a point is not its ring (0 to {RINGS - 1}), so these are not the five "
                "columns of nuScenes: x, y, z, intensity, ring. Extract the file again, or describe your own files "
                "with another format."
            )
        return points

    def has_labels(self, scan: ScanId) -> bool:
        return is_there(self._label_path(scan))

    def raw_labels(self, scan: ScanId, points: int) -> np.ndarray:
        path = self._label_path(scan)
        data = read_bytes(path)
        if len(data) != points:
            raise DataError(
                f"{path}: {len(data)} labels, but the scan has {points} points. Scan and labels do not belong "
                "together, or one of them is truncated. Extract both again."
            )
        return np.frombuffer(data, np.uint8).astype(np.uint32)

    def prediction(self, scan: ScanId, labels: np.ndarray, label_map: LabelMap, split: str | None) -> tuple[str, bytes]:
        """See `ScanFiles`: numbers of classes, as nuscenes-devkit's `eval/lidarseg` wants them."""
        token = self._key_frame(scan).token
        return f"lidarseg/{_folder(split)}/{token}_lidarseg.bin", labels.astype(np.uint8).tobytes()

    def submission_notes(self, splits: Iterable[str | None]) -> dict[str, bytes]:
        meta = (json.dumps({"meta": META}, indent=1) + "\n").encode()
        return {f"{_folder(split)}/submission.json": meta for split in splits}

    @cached_property
    def _scenes(self) -> dict[str, Scene]:
        scenes: dict[str, Scene] = {}
        versions = self._versions()
        for version in versions:
            found = key_frames(self.root / version)
            shared = sorted(scenes.keys() & found.keys())
            if shared:
                raise SettingsError(
                    f"{self.root}: holds {', '.join(versions)}, which share scenes such as {shared[0]}. Say which "
                    "one is meant in a YAML file of your own with two lines, extends: configs/datasets/nuscenes.yaml "
                    f"and options: {{version: {version}}}, and name that file as the dataset."
                )
            scenes |= {name: Scene(version, frames) for name, frames in found.items()}
        return scenes

    def _versions(self) -> list[str]:
        version = self.options.version
        if version is not None:
            return [version] if isinstance(version, str) else version
        # Not by name alone: folders of downloads may be called v1.0-trainval_meta.
        found = sorted({path.parent.name for table in TABLES for path in self.root.glob(f"v[0-9]*-*/{table}.json")})
        if not found:
            raise DataError(
                f"{self.root}: no folder v1.0-mini, v1.0-trainval or v1.0-test. --data must name the folder that holds "
                "one of them, and samples/ and lidarseg/ beside it."
            )
        return found

    @cached_property
    def _on_disk(self) -> frozenset[str]:
        return frozenset(names_in(self.root / LIDAR) or ())

    def _scene(self, sequence: str) -> Scene:
        if sequence not in self._scenes:
            raise self.missing(f"{self.root}: the tables of {', '.join(self._versions())} have no scene '{sequence}'")
        return self._scenes[sequence]

    def _key_frame(self, scan: ScanId) -> KeyFrame:
        frames = self._scene(scan.sequence).frames
        if scan.frame not in frames:
            raise DataError(
                f"{self.root}: {scan.sequence} has no key frame {scan.frame}; its first is {next(iter(frames), '-')}."
            )
        return frames[scan.frame]

    def _label_path(self, scan: ScanId) -> Path:
        token = self._key_frame(scan).token
        return self.root / "lidarseg" / self._scene(scan.sequence).version / f"{token}_lidarseg.bin"


def _folder(split: str | None) -> str:
    return split or "other"
