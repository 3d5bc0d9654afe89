"""The `Predictor` of somebody's own program: the classes that `predict` writes, whatever kind of array comes in."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.base.errors import CheckpointError, DataError, SettingsError
from common.scans.scan_id import ScanId
from stage2_train_student import Predictor
from stage2_train_student.__main__ import main
from tests.shared.kitti import list_scans, read_points
from tests.shared.reduced import command, one_thread, succeed

REPOSITORY = Path(__file__).resolve().parents[2]

CHEAP = """
import sys
import stage2_train_student
assert not {"torch", "numpy"} & set(sys.modules)
assert not hasattr(stage2_train_student, "Predicter")
"""


@pytest.fixture(scope="module")
def predictor(small_run) -> Predictor:
    """Its student."""
    return Predictor.load(small_run, device="cpu")


@pytest.fixture(scope="module")
def points(streets) -> np.ndarray:
    """A made-up scan; some points lie beyond every volume."""
    return read_points(streets, ScanId("00", "000000"))


def test_classes_are_those_that_the_command_writes(predictor, small_run, streets, tmp_path):
    words = ["predict", "--data", streets, "--run", small_run, "--split", "00", "--out", tmp_path, "--device", "cpu"]
    succeed(command(main, *words))
    for scan in list_scans(streets, ["00"]):
        with one_thread():
            classes = predictor(read_points(streets, scan))
        assert classes.dtype == np.uint8
        written = np.fromfile(tmp_path / f"sequences/00/predictions/{scan.frame}.label", "<u4")
        np.testing.assert_array_equal(predictor.label_map.to_raw(classes), written)
    assert predictor.names[int(classes[0])] in predictor.names[1:]
    assert predictor.colours.shape == (20, 3)


def test_probabilities_are_of_every_class_and_never_of_none(predictor, points):
    classes, probabilities = predictor.predict(points)
    assert probabilities.shape == (len(points), 20)
    assert probabilities.dtype == np.float32
    np.testing.assert_array_equal(probabilities.argmax(axis=1), classes)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert not probabilities[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_in_tensors_out(predictor, points, dtype):
    given = torch.from_numpy(points.copy()).to(dtype).requires_grad_()
    classes, probabilities = predictor.predict(given)
    assert classes.dtype == torch.uint8
    assert probabilities.dtype == torch.float32
    assert not probabilities.requires_grad
    np.testing.assert_array_equal(classes.numpy(), predictor(points))
    assert torch.equal(predictor(given), classes)
    assert torch.equal(predictor(given.detach().to_sparse()), classes)
    # An ordinary tensor, which a program may go on computing with.
    assert not classes.is_inference()
    assert not probabilities.is_inference()


def test_rows_of_any_layout_and_width_are_read(predictor, points):
    expected = predictor(points)
    wide = np.zeros((len(points), 6), np.float64)
    wide[:, :4] = points
    np.testing.assert_array_equal(predictor(wide[:, :4]), expected)
    np.testing.assert_array_equal(predictor(np.asfortranarray(points)), expected)
    np.testing.assert_array_equal(predictor(points[::-1]), expected[::-1])


def test_no_points_no_classes(predictor):
    empty = np.zeros((0, 4), np.float32)
    classes, probabilities = predictor.predict(empty)
    assert predictor(empty).shape == classes.shape == (0,)
    assert probabilities.shape == (0, 20)
    assert predictor(torch.from_numpy(empty)).shape == (0,)


def test_one_point_and_points_outside_the_grid_get_the_class_of_its_border(predictor, points):
    assert 1 <= predictor(points[:1])[0] < 20
    far = np.array([[300, 0, -60, 0.5], [49.999, 0, -2.999, 0.5]], np.float32)
    classes = predictor(far)
    assert classes[0] == classes[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((5, 3), np.float32), r"shape \[5, 3\]: give \[N, 4\]"),
        (np.zeros(4, np.float32), r"shape \[4\]"),
        (np.zeros((5, 4), np.int64), "int64 cannot be used, give float"),
        (torch.zeros(5, 4, dtype=torch.int32), "torch.int32 cannot be used"),
        ([[0.0, 0.0, 0.0, 0.0]], "list cannot be used"),
        (
            np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32),
            "1 of 2 points hold NaN or infinity, the first at row 1",
        ),
        (np.array([[1e300, 0, 0, 0]]), "NaN or infinity"),
        (torch.full((3, 4), torch.inf), "3 of 3"),
        (np.full((3, 4), 2e4, np.float32), "no sensor measures more"),
    ],
)
def test_what_is_no_scan_is_refused(predictor, given, message):
    with pytest.raises(DataError, match=message):
        predictor(given)


def test_threads_share_one_predictor(predictor, streets):
    clouds = [read_points(streets, scan) for scan in list_scans(streets, ["00", "08"])]
    expected = [predictor(cloud) for cloud in clouds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor, clouds * 3))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected * 3, strict=True))


def test_a_folder_or_device_that_is_none_is_refused(tmp_path, small_run):
    with pytest.raises(SettingsError, match="None is no folder"):
        Predictor.load(None)
    with pytest.raises(CheckpointError, match="no run here"):
        Predictor.load(tmp_path)
    with pytest.raises(SettingsError, match="unknown device"):
        Predictor.load(str(small_run), device="gpu")


def test_the_lines_of_the_documentation_work(small_run, streets, tmp_path, monkeypatch):
    lines = re.findall(
        r"^```python\n(.*?)^```", (REPOSITORY / "docs/predicting.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/full").symlink_to(small_run)
    (tmp_path / "scan.bin").write_bytes((streets / "sequences/00/velodyne/000000.bin").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(lines) == 1
    names: dict[str, Any] = {}
    exec(lines[0], names)
    np.testing.assert_array_equal(names["classes"], names["predictor"](names["points"]))
    assert names["probabilities"].shape == (len(names["points"]), 20)


def test_importing_the_package_is_cheap():
    subprocess.run([sys.executable, "-c", CHEAP], cwd=REPOSITORY, check=True)
