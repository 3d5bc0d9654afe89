"""The teacher computes what the original Cylinder3D computed under spconv 1.2.1, at both sizes."""

import numpy as np
import pytest
import torch

from stage1_dump_teacher.teachers.cylinder3d import to_pillars
from tests.golden.golden_files import golden_arrays, golden_json, relative_frobenius, subsample_rows

TOLERANCE = 1e-4
FULL_FILES = {
    "down1c": "mid",
    "down3c": "mid",
    "up2e": "mid",
    "up1e": "mid",
    "up0e": "mid",
    "up4e": "up4e",
}


def test_full_logits(teacher_full):
    golden = golden_arrays("teacher_full_logits")
    assert len(teacher_full.logits) == golden_json()["counts"]["teacher_full"]["logits"]["rows"]
    assert relative_frobenius(teacher_full.logits, golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", ["vox", "ctx"])
def test_full_stem(teacher_full, name):
    golden, layer = golden_arrays("teacher_full_stem"), teacher_full.layers[name]
    np.testing.assert_array_equal(layer.voxels[:, 1:], golden["coords"])
    assert_samples(layer.features, golden, name)


@pytest.mark.parametrize("name", FULL_FILES)
def test_full_layer_voxels_and_pillars(teacher_full, name):
    golden = golden_arrays(f"teacher_full_{FULL_FILES[name]}")
    layer = teacher_full.layers[name]
    assert tuple(layer.shape) == tuple(golden[f"{name}.shape"])
    np.testing.assert_array_equal(layer.voxels[:, 1:], golden[f"{name}.coords"])
    assert_samples(layer.features, golden, name)

    pillars = to_pillars(layer)
    assert len(pillars.pillars) == golden[f"{name}.n_pillars"]
    rows = subsample_rows(len(golden[f"{name}.pillar_xy"]), len(pillars.pillars))
    np.testing.assert_array_equal(pillars.pillars[rows, 1:], golden[f"{name}.pillar_xy"])
    assert relative_frobenius(pillars.features[rows], golden[f"{name}.pillar_feat"]) < TOLERANCE


@pytest.mark.parametrize("name", ["vox", "ctx", "down1c", "down3c", "up4e", "up2e", "up1e", "up0e"])
def test_reduced_layer(teacher_reduced, name):
    golden = golden_arrays("teacher_reduced_a" if name in ("vox", "ctx") else "teacher_reduced_b")
    layer = teacher_reduced.layers[name]
    assert tuple(layer.shape) == tuple(golden[f"{name}.shape"])
    np.testing.assert_array_equal(layer.voxels[:, 1:], golden[f"{name}.coords"])
    assert relative_frobenius(layer.features, golden[f"{name}.feat"]) < TOLERANCE
    if f"{name}.pillar_xy" in golden:
        np.testing.assert_array_equal(to_pillars(layer).pillars[:, 1:], golden[f"{name}.pillar_xy"])


def test_reduced_logits(teacher_reduced):
    golden = golden_arrays("teacher_reduced_a")
    assert relative_frobenius(teacher_reduced.logits, golden["logits.feat"]) < TOLERANCE


def assert_samples(features: torch.Tensor, golden: dict[str, np.ndarray], name: str) -> None:
    """Stored rows, and mean and spread of every channel over all rows."""
    assert relative_frobenius(features[golden[f"{name}.rows"]], golden[f"{name}.feat"]) < TOLERANCE
    values = features.double().numpy()
    assert relative_frobenius(values.mean(axis=0), golden[f"{name}.mean"]) < TOLERANCE
    assert relative_frobenius(values.std(axis=0), golden[f"{name}.std"]) < TOLERANCE
