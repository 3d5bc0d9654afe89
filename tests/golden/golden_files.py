"""Reading the golden folder: the recipe of its weights, the scan it was made from, and comparison with its samples.

Nothing here knows a scan number, a salt or a row count: they all come from the folder, so that any folder of the same
layout can be checked. `GOLDEN_DIR` and `SCANS_DIR` name the two folders; the defaults lie beside the repository.
"""

import functools
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.scans.formats.semantic_kitti import scan_path
from common.scans.label_map import LabelMap, load_label_map
from common.scans.polar_grid import PolarGrid, VoxelisedScan, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from stage2_train_student.students.polarnet import PolarNet
from stage2_train_student.students.student import StudentSettings
from tests.shared.kitti import read_points, read_raw_labels

REPOSITORY = Path(__file__).resolve().parents[2]

GAINS = {"PPmodel.0.running_var": 400.0, "cylinder_3d_spconv_seg.logits.weight": 8.0}
"""Factors on the drawn values of keys with these endings; all others are drawn with gain 1."""

GRIDS = {"full": (480, 360, 32), "reduced": (120, 90, 16)}
"""Bins along (rho, phi, z) of the two sizes that the folder holds."""


def folder_from(variable: str, default: str) -> Path:
    """The folder named by an environment variable, or `default` relative to the repository; fails when missing."""
    folder = (REPOSITORY / os.environ.get(variable, default)).resolve()
    if not folder.is_dir():
        pytest.fail(f"{folder} is not a folder; set {variable} to the folder that these tests need", pytrace=False)
    return folder


def golden_folder() -> Path:
    """Folder of the reference outputs (`GOLDEN_DIR`)."""
    return folder_from("GOLDEN_DIR", "../shared/golden")


def scans_folder() -> Path:
    """Folder that holds `sequences/` of SemanticKITTI scans (`SCANS_DIR`)."""
    return folder_from("SCANS_DIR", "../shared/semantic-kitti-sample/dataset")


@functools.cache
def golden_json(name: str = "golden") -> dict[str, Any]:
    """One JSON file of the golden folder, by its name without the ending."""
    path = golden_folder() / f"{name}.json"
    if not path.is_file():
        pytest.fail(f"{path} is missing from the golden folder", pytrace=False)
    return json.loads(path.read_text())


@functools.cache
def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one `.npz` file of the golden folder, by its name without the ending."""
    path = golden_folder() / f"{name}.npz"
    if not path.is_file():
        pytest.fail(f"{path} is missing from the golden folder", pytrace=False)
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def draw_values(key: str, row: dict[str, Any], salt: str) -> np.ndarray:
    """Draw one entry of a state dict from its own generator, float32 of the row's shape (int64 for a count)."""
    shape, kind = tuple(row["shape"]), row["kind"]
    if kind == "count":
        return np.zeros(shape, np.int64)
    generator = np.random.default_rng(zlib.crc32((key + salt).encode()))
    if kind in ("bn_weight", "bn_var"):
        values = generator.uniform(0.5, 1.5, shape)
    else:
        spread = {"bias": 0.05, "bn_bias": 0.1, "bn_mean": 0.1, "pe": 1.0}
        scale = np.sqrt(2.0 / row["fan_in"]) if kind == "weight" else spread[kind]
        values = generator.normal(0.0, scale, shape)
    gain = next((gain for ending, gain in GAINS.items() if key.endswith(ending)), 1.0)
    return (values * gain).astype(np.float32)


def draw_weights(manifest: dict[str, Any], salt: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict that a weight manifest describes, each entry checked against the manifest's sha256.

    Args:
        manifest: rows (shape, kind, fan_in, sha256) by key, as in `weights_*.json`.
        salt: `salt` of golden.json.
        prefix: removed from the keys, for example `student.`; keys that do not start with it are left out.

    Returns:
        a state dict with the published keys (sparse convolutions in the spconv 1.x layout).
    """
    weights = {}
    for key, row in manifest.items():
        if not key.startswith(prefix):
            continue
        values = draw_values(key, row, salt)
        if row["sha256"] is not None and hashlib.sha256(values.tobytes()).hexdigest() != row["sha256"]:
            pytest.fail(f"the values drawn for {key} differ from the manifest's checksum", pytrace=False)
        weights[key.removeprefix(prefix)] = torch.from_numpy(values)
    return weights


def golden_weights(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights of `weights_<name>.json` (teacher_full, teacher_reduced, student_full, student_reduced, kd, lwd)."""
    return draw_weights(golden_json(f"weights_{name}"), golden_json()["salt"], prefix)


@functools.cache
def label_map() -> LabelMap:
    """The project's own SemanticKITTI label map."""
    return load_label_map(REPOSITORY / "configs" / "datasets" / "semantic_kitti.yaml")


def golden_scan() -> ScanId:
    """The scan that the golden folder was made from."""
    return scan_in_split(golden_json()["scan"])


def scan_in_split(frame: str) -> ScanId:
    """The scan of this number, in a sequence of the golden folder's split that is present."""
    split = golden_json()["split"]
    for sequence in label_map().sequences(["val" if split == "valid" else split]):
        if scan_path(scans_folder(), ScanId(sequence, frame)).is_file():
            return ScanId(sequence, frame)
    pytest.fail(f"no sequence of split '{split}' under {scans_folder()} holds scan {frame}", pytrace=False)


@functools.cache
def golden_voxels(size: str) -> VoxelisedScan:
    """The golden scan with its labels on the `full` or `reduced` grid over the `polarnet` volume."""
    points = read_points(scans_folder(), golden_scan())
    labels = label_map().to_training(read_raw_labels(scans_folder(), golden_scan(), len(points)))
    return voxelise(points, PolarGrid.named("polarnet", GRIDS[size]), labels)


@functools.cache
def golden_batch(size: str) -> ScanBatch:
    """`golden_voxels` as a batch of one scan."""
    return batch_scans([golden_voxels(size)], GRIDS[size])


def golden_student(size: str) -> PolarNet:
    """PolarNet with the golden weights, widths read off their shapes."""
    weights = golden_weights(f"student_{size}", "student.")
    compressed, point_channels = weights["fea_compression.0.weight"].shape
    heights = GRIDS[size][2]
    classes = len(weights["BEV_model.network.outc.conv.bias"]) // heights
    settings = StudentSettings(point_channels=point_channels, compressed_channels=compressed)
    student = PolarNet(settings, heights, classes)
    student.load_state_dict(weights, strict=True)
    return student.eval()


def relative_frobenius(actual: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """|actual - expected| / |expected| in the Frobenius norm, computed in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def subsample_rows(chosen: int, rows: int) -> np.ndarray:
    """Rows kept by "subsample `chosen` of `rows`": floor(i * rows / chosen), all rows where there are no more."""
    return np.arange(rows) if rows <= chosen else np.arange(chosen) * rows // chosen
