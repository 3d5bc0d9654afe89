"""The parameter file of an exported folder: written and read by one strict description."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from common.base.devices import CPU
from common.base.errors import SettingsError
from stage2_train_student.__main__ import main
from stage2_train_student.predictor import Predictor
from stage2_train_student.shipping.parameters import (
    PARAMETERS_FILE,
    Parameters,
    check_same_student,
    parameters_of,
    write_parameters,
)
from stage2_train_student.training.runs import load_student, run_settings, run_weights
from tests.golden.golden_files import label_map
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import STREET_GRID, command, fail, succeed
from tests.shared.small_runs import write_small_run


@pytest.fixture(scope="module")
def parameters(small_run) -> Parameters:
    settings = run_settings(small_run)
    return parameters_of(load_student(settings, run_weights(small_run), CPU)[0], settings, label_map())


def test_what_is_written_is_read(parameters, tmp_path):
    write_parameters(parameters, tmp_path)
    check_same_student(tmp_path, parameters)
    numbers = json.loads((tmp_path / PARAMETERS_FILE).read_text())
    assert list(numbers) == [*Parameters.model_fields]
    assert numbers["classes"][1] == {"name": "car", "raw_id": 10, "colour": [100, 150, 245]}


def replaced(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value."""

    def change(numbers: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = numbers
        for parent in parents:
            place = place[parent]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda numbers: numbers.pop("grid"), "grid: is missing"),
        (lambda numbers: numbers["grid"].pop("shape"), "grid.shape: is missing"),
        (lambda numbers: numbers["classes"].pop(), "classes: not as the student has it"),
        (replaced("gird", value=1), "gird: unknown key; did you mean 'grid'"),
        (replaced("student_sha256", value="0" * 63), "student_sha256"),
        (replaced("student_sha256", value="0" * 64), "of another student"),
        (replaced("pillar_channels", value="16"), "pillar_channels: must be a whole number"),
        (replaced("pillar_channels", value=17), "pillar_channels: not as the student has it"),
        (replaced("pillar_channels", value=0), "greater than or equal to 1"),
        (replaced("grid", value=[1, 2, 3]), "grid: must have keys of its own: minimum"),
        (replaced("grid", "shape", value=[48, 40]), "grid.shape.2: is missing"),
        (replaced("grid", "shape", value=[48, 40, 16, 1]), "grid.shape: must have at most 3"),
        (replaced("grid", "shape", value=[48.5, 40, 16]), "grid.shape.0: must be a whole number"),
        (replaced("grid", "shape", value=[48, 0, 16]), "at least 2 bins"),
        (replaced("grid", "shape", value=[48, 41, 16]), "grid: not as the student has it"),
        (replaced("grid", "minimum", 1, value=float("nan")), "grid.minimum.1: must be a finite number"),
        (replaced("grid", "minimum", 0, value=50.0), "minimum must be below maximum"),
        (replaced("grid", "axes", 0, value="rho"), "grid.axes: must be rho in metres, phi"),
        (replaced("point_features", 3, value="phi"), "point_features: must be rho - centre"),
        (replaced("unlabelled", value=1), "unlabelled: must be 0"),
        (replaced("classes", value=[]), "classes: must have at least 2 items"),
        (replaced("classes", 1, "name", value="person"), "several are called person"),
        (replaced("classes", 1, "colour", value=[0, 0, 256]), "classes.1.colour.2: must be less than"),
        (replaced("classes", 1, "raw_id", value=-1), "classes.1.raw_id: must be greater than"),
        (replaced("classes", 1, "raw_id", value=True), "classes.1.raw_id: must be a whole number"),
    ],
)
def test_an_edited_file_is_refused_by_name(parameters, tmp_path, change, message):
    write_parameters(parameters, tmp_path)
    path = tmp_path / PARAMETERS_FILE
    numbers = json.loads(path.read_text())
    change(numbers)
    path.write_text(json.dumps(numbers))
    with pytest.raises(SettingsError) as caught:
        check_same_student(tmp_path, parameters)
    said = str(caught.value.message)
    assert message in said
    assert str(tmp_path) in said
    assert "export" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'"text"'])
def test_what_is_no_object_is_refused(parameters, tmp_path, content):
    (tmp_path / PARAMETERS_FILE).write_bytes(content)
    with pytest.raises(SettingsError, match=f"{PARAMETERS_FILE}: these values cannot be used") as caught:
        check_same_student(tmp_path, parameters)
    assert len(caught.value.message) < 600


def test_latency_refuses_a_damaged_folder(parameters, small_run, streets, tmp_path):
    words = ("latency", small_run, "--data", streets, "--onnx", tmp_path, "--scans", 1)
    (tmp_path / "map.onnx").write_bytes(b"damaged")
    assert f"{PARAMETERS_FILE}: cannot be read (No such file" in fail(command(main, *words))
    (tmp_path / PARAMETERS_FILE).write_text("[]")
    assert "Write the folder again with export" in fail(command(main, *words))
    write_parameters(parameters, tmp_path)
    assert "its graphs cannot be run" in fail(command(main, *words))


def test_predictions_do_not_need_the_file(small_run, tmp_path):
    to, (cloud, _) = tmp_path / "out", street_scan(50, seed=3)
    succeed(command(main, "export", small_run, "--to", to, "--no-onnx"))
    expected = Predictor.load(small_run, "cpu")(cloud)
    for content in ("[]", "{", '{"grid": {"shape": [0, 0, 0]}}'):
        (to / PARAMETERS_FILE).write_text(content)
        np.testing.assert_array_equal(Predictor.load(to, "cpu")(cloud), expected)


def test_classes_of_the_same_name_are_not_exported(tmp_path, semantic_kitti_yaml):
    own = tmp_path / "own.yaml"
    own.write_text(semantic_kitti_yaml.read_text().replace("name: truck", "name: car"))
    run = write_small_run(tmp_path / "run", f"dataset={own}", grid=STREET_GRID)
    said = fail(command(main, "export", run, "--to", tmp_path / "out", "--no-onnx"))
    assert "dataset 'semantic_kitti'" in said
    assert "several are called car; each needs a name of its own" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml", "run"]
