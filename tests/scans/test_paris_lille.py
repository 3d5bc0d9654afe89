"""Paris-Lille-3D from a made-up PLY file: windows of time, the sensor in the middle, coarse classes."""

import numpy as np
import pytest

from common.scans.dataset import open_dataset
from common.scans.scan_id import ScanId
from polar_distill import program
from tests.shared.cloud_writer import write_ply
from tests.shared.kitti import list_scans
from tests.shared.reduced import CONFIGS, command, fail, succeed

POINTS = 20_000
SPEED = 10.0
"""Metres per second, along x."""

XML = """<classes>
  <class id="0" en="unclassified" coarse="0" coarse_name="unclassified"/>
  <class id="202020000" en="road" coarse="1" coarse_name="ground"/>
  <class id="203000000" en="building" coarse="2" coarse_name="building"/>
</classes>"""


@pytest.fixture
def drive():
    """One second of a drive: points 0 to 5 m ahead of the sensor, that is 3 m above the ground."""
    generator = np.random.default_rng(0)
    time = 1000 + np.arange(POINTS) / POINTS
    sensor = np.stack([50_000 + SPEED * (time - 1000), np.full(POINTS, 7.0), np.full(POINTS, 53.0)], axis=1)
    points = sensor + np.stack(
        [generator.uniform(0, 5, POINTS), generator.uniform(-2, 2, POINTS), np.full(POINTS, -3.0)], axis=1
    )
    columns = {name: points[:, axis].astype(np.float64) for axis, name in enumerate("xyz")}
    columns |= {f"{name}_origin": sensor[:, axis] for axis, name in enumerate("xyz")}
    columns |= {"GPS_time": time, "reflectance": generator.integers(0, 256, POINTS).astype(np.uint8)}
    columns["class"] = np.where(points[:, 1] > 7, 202020000, 203000000).astype(np.uint32)
    return columns


def test_a_drive_becomes_scans_around_the_sensor(tmp_path, drive):
    shuffled = np.random.default_rng(1).permutation(POINTS)
    write_ply(tmp_path / "Lille1.ply", {name: column[shuffled] for name, column in drive.items()})
    (tmp_path / "coarse_classes.xml").write_text(XML)
    words = ["convert-paris-lille", tmp_path / "Lille1.ply", "--to", tmp_path / "data"]
    output = succeed(command(program, *words, "--classes", tmp_path / "coarse_classes.xml"))
    assert "17 scans" in output
    dataset = open_dataset(tmp_path / "data", CONFIGS / "datasets/paris_lille.yaml")
    selection = dataset.select(["train"])
    assert len(selection.scans) == 17
    read = dataset.read(selection.scans[4])
    rows = (np.arange(POINTS) >= 4000) & (np.arange(POINTS) < 8000)
    assert len(read.points) == 4000
    # Halfway through the window the vehicle is 3 m on.
    np.testing.assert_allclose(np.sort(read.points[:, 0]), np.sort(drive["x"][rows]) - 50_003, atol=1e-2)
    np.testing.assert_allclose(read.points[:, 2], -3, atol=1e-5)
    np.testing.assert_array_equal(
        np.sort(read.points[:, 3]), np.sort((drive["reflectance"][rows] / 255).astype(np.float32))
    )
    np.testing.assert_array_equal(read.labels, np.where(read.points[:, 1] > 0, 1, 2))
    assert "is there already" in fail(command(program, *words))
    twins = [
        "convert-paris-lille",
        tmp_path / "Lille1.ply",
        tmp_path / "other" / "Lille1.ply",
        "--to",
        tmp_path / "new",
    ]
    assert "several files are called Lille1" in fail(command(program, *twins))


def test_windows_that_do_not_overlap_hold_every_point_once_and_coarse_classes_need_no_table(tmp_path, drive):
    write_ply(tmp_path / "Paris.ply", drive | {"class": np.arange(POINTS, dtype=np.int32) % 10})
    words = ["convert-paris-lille", tmp_path / "Paris.ply", "--to", tmp_path / "data", "--step", 0.2]
    assert "5 scans" in succeed(command(program, *words))
    dataset = open_dataset(tmp_path / "data", CONFIGS / "datasets/paris_lille.yaml")
    scans = [dataset.read(scan) for scan in dataset.select(["val"]).scans]
    assert sum(len(scan.points) for scan in scans) == POINTS
    np.testing.assert_array_equal(scans[0].labels, np.arange(len(scans[0].points)) % 10)


def test_files_without_classes_have_no_labels_and_without_the_sensor_are_centred_on_their_points(tmp_path, drive):
    for name in ("class", "x_origin", "y_origin", "z_origin"):
        del drive[name]
    write_ply(tmp_path / "test.ply", drive)
    succeed(command(program, "convert-paris-lille", tmp_path / "test.ply", "--to", tmp_path / "data"))
    dataset = open_dataset(tmp_path / "data", CONFIGS / "datasets/paris_lille.yaml")
    assert not dataset.has_labels(ScanId("test", "000000"))
    read = dataset.read(list_scans(tmp_path / "data", ["test"])[0])
    np.testing.assert_allclose(read.points[:, :3].mean(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "xml", "message"),
    [
        ({"GPS_time": None}, XML, "no column 'GPS_time'"),
        ({"reflectance": None}, XML, "no column 'reflectance'"),
        ({"class": 5}, XML, "classes [5] are no coarse classes"),
        ({}, None, "classes [202020000, 203000000] are no coarse classes (0..9)"),
        ({}, "<classes/>", "lists 0 classes"),
        ({}, XML.replace('coarse="1"', ""), "cannot be read as coarse_classes.xml"),
        ({}, "no xml", "cannot be read as coarse_classes.xml"),
        ({"GPS_time": np.nan}, XML, "some values of GPS_time are NaN"),
        ({"GPS_time": 10**9 * np.arange(POINTS)}, XML, "is it in seconds?"),
        ({"GPS_time": 10 * np.arange(POINTS)}, XML, "no window of 0.2 s has 1000 points"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, drive, change, xml, message):
    for name, value in change.items():
        if value is None:
            del drive[name]
        else:
            drive[name] = np.broadcast_to(np.asarray(value, drive[name].dtype), POINTS)
    write_ply(tmp_path / "Lille1.ply", drive)
    words = ["convert-paris-lille", tmp_path / "Lille1.ply", "--to", tmp_path / "data"]
    if xml is not None:
        (tmp_path / "classes.xml").write_text(xml)
        words += ["--classes", tmp_path / "classes.xml"]
    assert message in fail(command(program, *words))


def test_semantic_poss_has_its_classes():
    label_map = open_dataset(CONFIGS, CONFIGS / "datasets/semantic_poss.yaml").label_map
    assert len(label_map.classes) == 14
    assert np.ptp(label_map.class_weights()[1:]) < 0.1
