"""Clouds from other people's files: the same points from every kind, and what is said of damaged ones."""

import sys

import numpy as np
import pytest

from common.base.errors import DataError
from common.scans.readers import Bag, read_cloud, read_file, read_label_file
from tests.shared.cloud_writer import WRITERS, write_bag, write_named_npy, write_pcd, write_ply
from tests.shared.dataset_writer import street_scan

POINTS, RAW = street_scan(600)
CLOUD = dict(zip(("x", "y", "z", "intensity"), POINTS.T, strict=True))
MORE = CLOUD | {"time": np.arange(600, dtype=np.float64) / 7, "ring": (np.arange(600) % 32).astype(np.uint16)}


def same(read, columns):
    assert list(read.columns) == list(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(read.columns[name], column)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_cloud_comes_back_from_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"000000{suffix}"
    WRITERS[suffix](path, CLOUD)
    [cloud] = read_cloud(path)
    same(cloud, CLOUD)
    np.testing.assert_array_equal(cloud.points(), POINTS)
    np.testing.assert_array_equal(cloud.points(None), POINTS * np.float32([1, 1, 1, 0]))
    np.testing.assert_allclose(cloud.points(scale=0.5)[:, 3], POINTS[:, 3] / 2)


@pytest.mark.parametrize("suffix", [".bag", "", "_mcap"])
def test_a_cloud_comes_back_from_every_kind_of_bag(tmp_path, suffix):
    path = tmp_path / f"drive{suffix}"
    write_bag(path, {"/points": [MORE, CLOUD], "/rear": [CLOUD]}, rows=4, padding=12)
    clouds = list(read_cloud(path, topic="/points"))
    same(clouds[0], MORE)
    same(clouds[1], CLOUD)
    np.testing.assert_array_equal(clouds[0].points(), POINTS)
    storage = [inside for inside in path.iterdir() if inside.suffix in (".db3", ".mcap")] if path.is_dir() else []
    for inside in storage:
        same(next(read_cloud(inside, topic="/rear")), CLOUD)
    with pytest.raises(DataError, match=r"several PointCloud2 topics \(/points, /rear\)"):
        next(read_cloud(path))
    with pytest.raises(DataError, match=r"no PointCloud2 topic /front here; PointCloud2 topics: /points, /rear"):
        next(read_cloud(path, topic="/front"))


@pytest.mark.parametrize("suffix", [".bag", "", "_mcap"])
@pytest.mark.parametrize("interval", [0, 1])
def test_messages_are_found_in_any_order(tmp_path, suffix, interval):
    clouds = [{"x": np.full(3, index, np.float32)} for index in range(5)]
    write_bag(tmp_path / f"drive{suffix}", {"/points": clouds}, interval)
    with Bag(tmp_path / f"drive{suffix}") as bag:
        assert len(bag) == 5
        assert [bag.read(index).columns["x"][0] for index in (3, 0, 4, 3, 1, 2)] == [3, 0, 4, 3, 1, 2]
        with pytest.raises(DataError, match="no message 5; there are 5"):
            bag.read(5)


def test_what_is_wrong_with_a_header_is_said_in_one_line(tmp_path):
    write_pcd(tmp_path / "a.pcd", MORE)
    (tmp_path / "a.pcd").write_bytes((tmp_path / "a.pcd").read_bytes().replace(b"WIDTH", b"LENGTH"))
    with pytest.raises(DataError, match=r"a\.pcd: .*\(ValidationError: width: Field required\)") as caught:
        read_file(tmp_path / "a.pcd")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_other_encodings_of_pcd(tmp_path, encoding):
    write_pcd(tmp_path / "a.pcd", MORE, encoding)
    read = read_file(tmp_path / "a.pcd")
    assert list(read.columns) == list(MORE)
    np.testing.assert_allclose(read.points(), POINTS, rtol=1e-6)


@pytest.mark.parametrize("options", [{"text": True}, {"byte_order": ">"}])
def test_other_encodings_of_ply(tmp_path, options):
    write_ply(tmp_path / "a.ply", MORE, **options)
    read = read_file(tmp_path / "a.ply")
    assert list(read.columns) == list(MORE)
    np.testing.assert_allclose(read.points(), POINTS, rtol=1e-6)


def test_an_array_with_names_and_columns_in_another_order(tmp_path):
    write_named_npy(tmp_path / "a.npy", MORE)
    same(read_file(tmp_path / "a.npy"), MORE)
    POINTS[:, [3, 2, 1, 0]].tofile(tmp_path / "b.bin")
    np.testing.assert_array_equal(read_file(tmp_path / "b.bin", ("intensity", "z", "y", "x")).points(), POINTS)


@pytest.mark.parametrize("suffix", [*WRITERS, ".bag", "/", "/mcap"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / ("drive" + suffix.replace("/", "_") if suffix in ("/", "/mcap", ".bag") else f"000000{suffix}")
    WRITERS.get(suffix, lambda path, cloud: write_bag(path, {"/points": [cloud] * 3}))(path, CLOUD)
    data = next(inside for inside in path.iterdir() if inside.suffix != ".yaml") if path.is_dir() else path
    data.write_bytes(data.read_bytes()[:-1003])
    with pytest.raises(DataError, match=path.name):
        list(read_cloud(path))


@pytest.mark.parametrize("suffix", [*WRITERS, ".bag", ".db3", ".mcap", ".las"])
@pytest.mark.parametrize("content", [None, b"no cloud"])
def test_a_file_that_is_missing_or_something_else_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"000000{suffix}"
    if content is not None:
        path.write_bytes(content + bytes(3))
    with pytest.raises(DataError, match=path.name):
        list(read_cloud(path))


def test_a_wrong_number_of_columns_says_what_was_expected(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 5), np.float32))
    with pytest.raises(DataError, match=r"shape \[5, 5\]; one row a point and 4 columns \(x, y, z, intensity\)"):
        read_file(tmp_path / "a.npy")
    np.zeros((5, 5), np.float32).tofile(tmp_path / "a.bin")
    read_file(tmp_path / "a.bin", ("x", "y", "z", "intensity", "ring"))
    np.zeros((5, 5), np.float32)[:3].tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match="60 bytes are not a whole number of points of 16 bytes"):
        read_file(tmp_path / "a.bin")


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    write_ply(tmp_path / "a.ply", MORE)
    with pytest.raises(DataError, match="no column 'reflectivity'; the columns are x, y, z, intensity, time, ring"):
        read_file(tmp_path / "a.ply").points("reflectivity")


def test_a_missing_library_names_what_installs_it(tmp_path, monkeypatch):
    write_ply(tmp_path / "a.ply", CLOUD)
    monkeypatch.setitem(sys.modules, "plyfile", None)
    with pytest.raises(DataError, match=r"pip install 'polar-distill\[formats\]'"):
        read_file(tmp_path / "a.ply")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.float32])
def test_labels_of_any_width(tmp_path, dtype):
    ids = (RAW & 0xFF).astype(dtype)
    np.save(tmp_path / "a.npy", ids)
    np.testing.assert_array_equal(read_label_file(tmp_path / "a.npy", 600), RAW & 0xFF)
    if np.dtype(dtype).itemsize <= 4 and dtype != np.float32:
        ids.tofile(tmp_path / "a.bin")
        np.testing.assert_array_equal(read_label_file(tmp_path / "a.bin", 600), RAW & 0xFF)
    with pytest.raises(DataError, match=r"a.npy: 600 labels for a scan of 599 points"):
        read_label_file(tmp_path / "a.npy", 599)


def test_labels_with_instances_and_labels_that_are_none(tmp_path):
    RAW.tofile(tmp_path / "a.label")
    np.testing.assert_array_equal(read_label_file(tmp_path / "a.label", 600), RAW)
    with pytest.raises(DataError, match=r"a.label: 600 labels for a scan of 2400 points"):
        read_label_file(tmp_path / "a.label", 2400)
    np.save(tmp_path / "b.npy", np.array([3.0, 0.5]))
    with pytest.raises(DataError, match=r"b.npy: 0.5 is no label id"):
        read_label_file(tmp_path / "b.npy", 2)
    np.save(tmp_path / "b.npy", np.array([3, 203000000]))
    with pytest.raises(DataError, match=r"b.npy: 203000000 is no label id"):
        read_label_file(tmp_path / "b.npy", 2)
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(DataError, match=r"a.txt: label files of this kind are not read"):
        read_label_file(tmp_path / "a.txt", 2)
