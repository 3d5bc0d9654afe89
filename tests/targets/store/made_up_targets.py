"""Small stores of random targets, made once and shared by tests as plain dictionaries of files."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.scans.label_map import LabelMap, load_label_map
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, draw_view
from common.targets.store import StoreIdentity, TargetEncoding, TargetStore, ViewSet
from common.targets.store.merging import archive_all
from common.targets.store.storage import Storage
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures
from tests.shared.memory_storage import MemoryStorage

REPOSITORY = Path(__file__).resolve().parents[3]
GRID = PolarGrid.named("polarnet", (16, 12, 8))
CHANNELS = {"down1c": 4, "up0e": 6}
SCANS = [ScanId("00", "000000"), ScanId("00", "000001"), ScanId("11", "000000")]
VIEWS = ViewSet(count=2)

Files = dict[str, bytes]


@cache
def label_map() -> LabelMap:
    """The project's own label map."""
    return load_label_map(REPOSITORY / "configs" / "datasets" / "semantic_kitti.yaml")


def encoding_of(name: str, codec: str = "zstd") -> TargetEncoding:
    """The same encoding for all features."""
    return TargetEncoding.model_validate(
        {"pillar_features": name, "voxel_features": name, "logits": name, "codec": codec}
    )


def identity(encoding: str = "float32", codec: str = "zstd", **changes: Any) -> StoreIdentity:
    """Of a store of made-up targets, with some parts changed."""
    parts: dict[str, Any] = {
        "teacher_hash": "a" * 64,
        "grid": GRID,
        "label_map": label_map(),
        "layers": CHANNELS,
        "voxel_features": True,
        "encoding": encoding_of(encoding, codec),
        "views": VIEWS,
    }
    return StoreIdentity.of(**(parts | changes))


def points_of(scan: ScanId) -> np.ndarray:
    """A scan's points, float32 [50, 4]."""
    generator = np.random.default_rng([int(scan.sequence), int(scan.frame)])
    return generator.normal(0.0, 10.0, (50, 4)).astype(np.float32)


@cache
def targets_of(scan: ScanId, view: int, version: int = 0, voxels: int = 30) -> TeacherTargets:
    """Random targets of one scan and view; other versions hold other numbers."""
    generator = np.random.default_rng([int(scan.sequence), int(scan.frame), view, version])
    linear = np.sort(generator.choice(np.prod(GRID.shape), voxels, replace=False))
    return targets_at(linear, GRID, generator)


def targets_at(linear: np.ndarray, grid: PolarGrid, generator: np.random.Generator) -> TeacherTargets:
    """Random targets of a scan that occupies the voxels with these linear indices, int64 [V]."""
    radial, azimuth, height = grid.shape
    bins = np.stack((np.zeros_like(linear), *np.unravel_index(linear, grid.shape)), axis=1)
    coarse_shape = (radial // 2, azimuth // 2, height // 2)
    layers, voxel_layers = {}, {}
    for name, shape, stride in (("down1c", coarse_shape, 2), ("up0e", grid.shape, 1)):
        layer_voxels = torch.from_numpy(np.unique(bins // [1, stride, stride, stride], axis=0))
        pillars = torch.unique(layer_voxels[:, :3], dim=0)
        layers[name] = PillarFeatures(pillars, random_values(generator, len(pillars), CHANNELS[name]), shape[:2])
        features = random_values(generator, len(layer_voxels), CHANNELS[name])
        voxel_layers[name] = VoxelFeatures(layer_voxels, features, shape)
    logits = random_values(generator, len(bins), len(label_map().names))
    return TeacherTargets(torch.from_numpy(bins), logits, layers, voxel_layers)


def random_values(generator: np.random.Generator, rows: int, channels: int) -> torch.Tensor:
    """float32 [rows, channels] of the size of a teacher's features."""
    return torch.from_numpy(generator.normal(0.0, 3.0, (rows, channels)).astype(np.float32))


def write_one(store: TargetStore, scan: ScanId, view: int, version: int = 0) -> None:
    """Write the made-up targets of one scan and view."""
    drawn = draw_view(VIEWS.policy, scan, view) if view else IDENTITY
    store.write(scan, view, drawn, targets_of(scan, view, version), points_of(scan))


def fill(storage: Storage, encoding: str = "float32", codec: str = "zstd") -> TargetStore:
    """A complete store: every scan in every view."""
    store = TargetStore.create_or_resume(storage, identity(encoding, codec), {})
    for scan in SCANS:
        for view in range(VIEWS.count):
            write_one(store, scan, view)
    return store


@cache
def store_files(encoding: str = "float32", codec: str = "zstd") -> Files:
    """Files of a complete store."""
    storage = MemoryStorage()
    fill(storage, encoding, codec)
    return all_files(storage)


def all_files(storage: Storage) -> Files:
    """Everything in a storage."""
    return {name: storage.read(name) for name, _ in storage.sizes()}


def write_archive(source: Storage, path: Path) -> None:
    """Every file of a storage in one archive."""
    list(archive_all({}, all_files(source), path))


def same(left: TeacherTargets, right: TeacherTargets) -> bool:
    """Whether two sets of targets are equal to the bit."""
    return numbers(left) == numbers(right)


def numbers(targets: TeacherTargets) -> dict[str, Any]:
    """Every number of some targets in comparable form: shapes, dtypes and bytes."""
    tensors = {"voxels": targets.voxels, "logits": targets.logits}
    shapes = {}
    for name, layer in targets.layers.items():
        tensors |= {f"{name}.pillars": layer.pillars, f"{name}.pillar_features": layer.features}
        shapes[f"{name}.pillars"] = tuple(layer.shape)
    for name, voxel_layer in targets.voxel_layers.items():
        tensors |= {f"{name}.voxels": voxel_layer.voxels, f"{name}.voxel_features": voxel_layer.features}
        shapes[f"{name}.voxels"] = tuple(voxel_layer.shape)
    return {
        "shapes": shapes,
        **{k: (str(v.dtype), tuple(v.shape), v.contiguous().numpy().tobytes()) for k, v in tensors.items()},
    }
