"""The student computes what the original PolarNet computed, at both sizes."""

import numpy as np
import pytest
import torch

from stage2_train_student.students.pillar_maps import pillars_last
from stage2_train_student.students.student import StudentOutputs
from tests.golden.golden_files import (
    golden_arrays,
    golden_batch,
    golden_json,
    golden_student,
    relative_frobenius,
)

TOLERANCE = 1e-4
LAYERS = ["bev_in", "x2", "x4", "x_up5", "x_up3", "x_up2"]


@pytest.fixture(scope="module", params=["full", "reduced"])
def student_and_outputs(request) -> tuple[str, StudentOutputs, torch.Tensor]:
    """Size, outputs on the golden scan, and the U-Net's input."""
    student = golden_student(request.param)
    with torch.no_grad():
        return request.param, student(golden_batch(request.param)), student.pillar_map(golden_batch(request.param))


def test_occupied_voxels(student_and_outputs):
    size, outputs, _ = student_and_outputs
    batch, counts = golden_batch(size), golden_json()["counts"][f"student_{size}"]
    np.testing.assert_array_equal(batch.voxels[:, 1:], golden_arrays(f"student_{size}")["coords"])
    assert len(outputs.voxel_logits) == len(batch.voxels)
    assert len(batch.point_features) == counts["n_points"]
    assert len(batch.pillars) == counts["n_pillars"]


def test_logits(student_and_outputs):
    size, outputs, _ = student_and_outputs
    golden = golden_arrays(f"student_{size}")
    assert relative_frobenius(outputs.voxel_logits[golden["rows"]], golden["logits"]) < TOLERANCE
    decided = golden["margin"] > 1e-3
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(outputs.voxel_logits.argmax(dim=1).numpy()[decided], golden["argmax"][decided])


@pytest.mark.parametrize("name", LAYERS)
def test_layer(student_and_outputs, name):
    size, outputs, pillar_map = student_and_outputs
    golden = golden_arrays(f"student_{size}")
    layer = pillar_map if name == "bev_in" else outputs.layers[name]
    assert tuple(layer.shape[1:]) == tuple(golden[f"{name}.shape"])
    rows = pillars_last(layer)
    assert relative_frobenius(rows[golden[f"{name}.pix"]], golden[f"{name}.feat"]) < TOLERANCE
    values = rows.double().numpy()
    assert relative_frobenius(values.mean(axis=0), golden[f"{name}.mean"]) < TOLERANCE
    assert relative_frobenius(values.std(axis=0), golden[f"{name}.std"]) < TOLERANCE
