"""A sensor of one's own, described by a YAML file: any kind of files, points at the origin, labels of any kind."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.base.errors import DataError, SettingsError
from common.scans.dataset import Dataset
from common.scans.formats.files import FilesSettings, SensorFiles
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from stage2_train_student.__main__ import main
from tests.shared.by_hand import student_words
from tests.shared.cloud_writer import WRITERS, write_bag, write_named_npy, write_npy, write_pcd, write_ply
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import (
    REPOSITORY,
    STREET_GRID,
    command,
    dump,
    experiment_overrides,
    fail,
    settings_words,
    succeed,
    train,
)

POINTS, RAW = street_scan(1500)
COLUMNS = ("x", "y", "z", "intensity")
SCAN = ScanId("00", "000000")


def columns_of(points: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, points.T, strict=True))


CLOUD = columns_of(POINTS)


def files(root: Path, **options) -> SensorFiles:
    return SensorFiles(root, options)


def write_description(path: Path, semantic_kitti_yaml: Path, **options) -> Path:
    """The YAML of a dataset with SemanticKITTI's classes."""
    own = {"extends": str(semantic_kitti_yaml), "name": "my_sensor", "format": "files", "options": options}
    path.write_text(yaml.safe_dump(own))
    return path


def predict(data: Path, description: Path, student_file: Path, experiment: Path, out: Path):
    overrides = [*experiment_overrides(STREET_GRID), f"dataset={description}"]
    words = [*student_words(student_file, experiment), *settings_words(*overrides), "--out", out]
    return command(main, "predict", "--data", data, *words)


def test_the_same_cloud_is_predicted_the_same_from_every_kind_of_file(
    tmp_path, student_file, experiment, semantic_kitti_yaml
):
    written = {}
    for suffix in [*WRITERS, ".bag", "_db3", "_mcap"]:
        data = tmp_path / suffix.strip("._")
        (data / "scans").mkdir(parents=True)
        if suffix in WRITERS:
            WRITERS[suffix](data / "scans" / f"000000{suffix}", CLOUD)
            pattern = f"scans/{{frame}}{suffix}"
        else:
            write_bag(data / "scans" / f"00{suffix}", {"/points": [CLOUD]})
            pattern = f"scans/{{sequence}}{suffix}"
        description = write_description(tmp_path / "own.yaml", semantic_kitti_yaml, scans=pattern)
        succeed(predict(data, description, student_file, experiment, data / "out"))
        written[suffix] = np.fromfile(data / "out/sequences/00/predictions/000000.label", "<u4")
    assert len(set(written[".bin"].tolist())) > 3
    for suffix, labels in written.items():
        assert len(labels) == len(POINTS), suffix
        np.testing.assert_array_equal(labels, written[".bin"], err_msg=suffix)


def test_points_at_the_origin_and_nan_are_left_out_and_predictions_keep_the_order_of_the_file(
    tmp_path, student_file, experiment, semantic_kitti_yaml
):
    dropped = np.arange(len(POINTS)) % 5 == 2
    points = POINTS.copy()
    points[dropped, :3] = 0
    points[7] = np.nan
    dropped[7] = True
    (tmp_path / "scans").mkdir()
    points.tofile(tmp_path / "scans/000000.bin")
    POINTS[~dropped].tofile(tmp_path / "scans/000001.bin")
    RAW.tofile(tmp_path / "scans/000000.label")
    pattern = {"scans": "scans/{frame}.bin", "labels": "scans/{frame}.label", "drop_origin": True}

    description = write_description(tmp_path / "own.yaml", semantic_kitti_yaml, **pattern)
    label_map = load_label_map(description)
    dataset = Dataset.open(tmp_path, label_map)
    read = dataset.read(SCAN)
    np.testing.assert_array_equal(read.points, POINTS[~dropped])
    np.testing.assert_array_equal(read.labels, label_map.to_training(RAW[~dropped]))
    restored = dataset.files.restored(SCAN, read.labels)
    np.testing.assert_array_equal(restored, np.where(dropped, 0, label_map.to_training(RAW)))

    succeed(predict(tmp_path, description, student_file, experiment, tmp_path / "out"))
    whole, kept = (np.fromfile(path, "<u4") for path in sorted((tmp_path / "out").rglob("*.label")))
    assert len(whole) == len(POINTS)
    assert not whole[dropped].any()
    np.testing.assert_array_equal(whole[~dropped], kept)

    description = write_description(tmp_path / "own.yaml", semantic_kitti_yaml, **pattern | {"drop_origin": False})
    message = fail(predict(tmp_path, description, student_file, experiment, tmp_path / "out"))
    assert "1 of 1500 points hold NaN or infinity, the first at row 7" in message
    assert "drop_origin: true" in message


def test_columns_scale_and_no_reflectance(tmp_path):
    np.column_stack([POINTS[:, [3, 0, 1, 2]], POINTS]).astype("<f4").tofile(tmp_path / "a.bin")
    columns = ["intensity", "x", "y", "z", "a", "b", "c", "ring"]
    own = files(tmp_path, scans="{frame}.bin", columns=columns, reflectance_scale=0.5)
    read = own.points(ScanId("00", "a"))
    np.testing.assert_array_equal(read[:, :3], POINTS[:, :3])
    np.testing.assert_array_equal(read[:, 3], POINTS[:, 3] / 2)
    own = files(tmp_path, scans="{frame}.bin", columns=columns, reflectance=None)
    assert not own.points(ScanId("00", "a"))[:, 3].any()


def test_scans_are_listed_by_their_pattern_and_stray_files_are_left_out(tmp_path):
    for name in ("b/lidar/x_2.npy", "b/lidar/x_1.npy", "a/lidar/x_1.npy", "a/lidar/._x_2.npy", "a/lidar/y.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_npy(tmp_path / name, CLOUD)
    (tmp_path / ".trash").mkdir()
    own = files(tmp_path, scans="{sequence}/lidar/x_{frame}.npy")
    assert own.sequences() == ["a", "b"]
    assert list(map(str, own.scans(["b", "a"]))) == ["b/1", "b/2", "a/1"]
    assert own.left_out(["a", "b"]) == ["a/lidar/._x_2.npy"]
    with pytest.raises(DataError, match=r"no scans of sequence c.*present: a, b"):
        own.scans(["c"])
    with pytest.raises(DataError, match=r"no file fits the pattern 'lidar/\{frame\}.npy'"):
        files(tmp_path, scans="lidar/{frame}.npy").sequences()
    again = files(tmp_path, scans="{sequence}/lidar/{sequence}_{frame}.npy")
    (tmp_path / "a/lidar/y.npy").rename(tmp_path / "a/lidar/a_000001.npy")
    assert list(map(str, again.scans(again.sequences()))) == ["a/000001"]


def test_folders_of_one_digit_are_sequences_of_two(tmp_path):
    for folder in ("1", "2", "10"):
        (tmp_path / folder).mkdir()
        write_npy(tmp_path / folder / "0.npy", CLOUD)
        np.save(tmp_path / folder / "0_labels.npy", RAW)
    own = files(tmp_path, scans="{sequence}/{frame}.npy", labels="{sequence}/{frame}_labels.npy")
    assert own.sequences() == ["01", "02", "10"]
    [scan] = own.scans(["02"])
    assert str(scan) == "02/0"
    np.testing.assert_array_equal(own.points(scan), POINTS)
    np.testing.assert_array_equal(own.raw_labels(scan, len(POINTS)), RAW)


def test_labels_in_a_column_of_the_scan(tmp_path):
    write_named_npy(tmp_path / "000000.npy", CLOUD | {"label": (RAW & 0xFF).astype(np.uint8)})
    write_ply(tmp_path / "000000.ply", CLOUD | {"label": (RAW & 0xFF).astype(np.float32)})
    write_bag(tmp_path / "00.bag", {"/points": [CLOUD, CLOUD | {"label": (RAW & 0xFF).astype(np.uint16)}]})
    for pattern, scan in (("{frame}.npy", SCAN), ("{frame}.ply", SCAN), ("{sequence}.bag", ScanId("00", "000001"))):
        own = files(tmp_path, scans=pattern, label_column="label")
        assert own.has_labels(scan)
        np.testing.assert_array_equal(own.raw_labels(scan, len(POINTS)), RAW & 0xFF)
    assert not files(tmp_path, scans="{sequence}.bag", label_column="label").has_labels(SCAN)
    with pytest.raises(DataError, match="no column 'label', which other scans have"):
        own.raw_labels(SCAN, len(POINTS))
    for frame, message in (("000002", "no message 2; there are 2"), ("last", "are numbered")):
        with pytest.raises(DataError, match=message):
            own.points(ScanId("00", frame))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({0: np.inf}, "1 of 1500 points hold NaN or infinity"),
        ({0: 6e6}, "coordinate of 6e\\+06 m"),
        ({3: 1e6}, "reflectance of 1e\\+06"),
    ],
)
def test_what_no_sensor_measures_is_refused(tmp_path, values, message):
    points = POINTS.astype(np.float64)
    for column, value in values.items():
        points[3, column] = value
    write_npy(tmp_path / "000000.npy", columns_of(points))
    with pytest.raises(DataError, match=f"000000.npy.*{message}"):
        files(tmp_path, scans="{frame}.npy").points(SCAN)


def test_scans_without_points_are_read_where_they_may_be_empty(tmp_path):
    write_bag(tmp_path / "00.bag", {"/points": [{}, columns_of(POINTS) | {"label": np.full(len(POINTS), 10, "<u4")}]})
    own = SensorFiles(tmp_path, {"scans": "{sequence}.bag", "label_column": "label"}, empty=True)
    first, second = own.scans(["00"])
    # A message without points may be one without fields; the others still have labels.
    for scan, size in ((second, len(POINTS)), (first, 0)):
        assert own.has_labels(scan)
        assert own.points(scan).shape == (size, 4)
        assert own.raw_labels(scan, size).shape == (size,)


def test_scans_without_points_and_labels_of_another_number_are_refused(tmp_path):
    (tmp_path / "000000.bin").touch()
    own = files(tmp_path, scans="{frame}.bin", labels="{frame}.label", drop_origin=True)
    with pytest.raises(DataError, match=r"000000.bin: the scan is empty"):
        own.points(SCAN)
    np.zeros((9, 4), "<f4").tofile(tmp_path / "000000.bin")
    with pytest.raises(DataError, match="all 9 points are at the origin"):
        own.points(SCAN)
    assert not own.has_labels(SCAN)
    POINTS.tofile(tmp_path / "000000.bin")
    RAW[1:].tofile(tmp_path / "000000.label")
    with pytest.raises(DataError, match=r"000000.label: 1499 labels for a scan of 1500 points"):
        own.raw_labels(SCAN, len(own.points(SCAN)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "scans: is missing"),
        ({"scans": "velodyne/*.bin"}, "needs {frame}"),
        ({"scans": "{scene}/{frame}.bin"}, "only fields"),
        ({"scans": "../{frame}.bin"}, "no path below DATA"),
        ({"scans": "{frame}.bin", "labels": "labels.txt"}, "labels: 'labels.txt' needs {frame}"),
        ({"scans": "{frame}.bin", "labels": "{frame}.npy", "label_column": "label"}, "keep one of them"),
        ({"scans": "{frame}.bin", "columns": ["x", "y", "height"]}, "called x, y and z"),
        ({"scans": "{frame}.bin", "columns": ["x", "y", "z"]}, "is not among the columns"),
        ({"scans": "{frame}.bin", "colums": ["x", "y", "z"]}, "did you mean 'columns'?"),
        ({"scans": "{frame}.bin", "reflectance_scale": 0}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, options, message):
    with pytest.raises(SettingsError) as caught:
        files(tmp_path, **options)
    assert message in caught.value.message


def test_the_yaml_on_the_page_works_and_its_table_is_complete(tmp_path):
    page = (REPOSITORY / "docs/own-sensor.md").read_text()
    (tmp_path / "own.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    label_map = load_label_map(tmp_path / "own.yaml")
    assert Dataset.open(tmp_path, label_map).files.settings.drop_origin
    table = re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)
    assert [name for name, _ in table] == list(FilesSettings.model_fields)


def test_a_store_is_dumped_and_a_student_trained_and_evaluated_on_scans_with_points_at_the_origin(
    tmp_path, reduced_teacher, semantic_kitti_yaml
):
    for sequence, seed in (("00", 0), ("00", 1), ("08", 2)):
        points, raw = street_scan(1500, seed)
        points[::5, :3] = 0
        points[:, 3] *= 200
        (tmp_path / "data" / sequence).mkdir(parents=True, exist_ok=True)
        write_pcd(tmp_path / "data" / sequence / f"{seed}.pcd", columns_of(points))
        np.save(tmp_path / "data" / sequence / f"{seed}.npy", (raw & 0xFFFF).astype(np.uint16))
    options = {"scans": "{sequence}/{frame}.pcd", "labels": "{sequence}/{frame}.npy", "reflectance_scale": 0.005}
    description = write_description(tmp_path / "own.yaml", semantic_kitti_yaml, **options, drop_origin=True)
    own = f"dataset={description}"
    succeed(dump(tmp_path / "data", reduced_teacher, tmp_path / "cache", STREET_GRID, own, "views.count=1"))
    succeed(train(tmp_path / "data", tmp_path / "cache", tmp_path / "run", own, "steps=1", "batch_size=2"))
    succeed(command(main, "evaluate", "--data", tmp_path / "data", "--run", tmp_path / "run", "--device", "cpu"))
    numbers = json.loads((tmp_path / "run/evaluation_val.json").read_text())
    points, raw = street_scan(1500, 2)
    dropped = np.arange(1500) % 5 == 0
    assert numbers["points"] == ((raw & 0xFFFF != 0) & ~dropped).sum()


def test_braces_in_the_name_of_a_folder_are_no_field(tmp_path):
    for name in ("{x}", "y"):
        (tmp_path / name).mkdir()
        POINTS.tofile(tmp_path / name / "0.bin")
    own = files(tmp_path, scans="{sequence}/{frame}.bin")
    assert own.scans(own.sequences()) == [ScanId("y", "0"), ScanId("{x}", "0")]
