"""Scans and labels on disk, and what is said when they are not what they should be."""

import pickle

import numpy as np
import pytest

from common.base.errors import DataError
from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from tests.shared.dataset_writer import street_scan, write_dataset, write_scan
from tests.shared.kitti import has_labels, hidden_entries, list_scans, present_sequences, read_points, read_raw_labels

SCAN = ScanId("00", "000000")


def test_scans_are_listed_in_order(tmp_path):
    written = write_dataset(tmp_path, {"00": 12, "08": 2, "11": 1}, points=20, unlabelled=("11",))
    assert present_sequences(tmp_path) == ["00", "08", "11"]
    assert list_scans(tmp_path, ["00", "08", "11"]) == written
    assert [str(scan) for scan in list_scans(tmp_path, ["08"])] == ["08/000000", "08/000001"]
    assert [has_labels(tmp_path, scan) for scan in written] == [True] * 14 + [False]


def test_points_and_labels_come_back_unchanged(tmp_path):
    points, raw = street_scan(3000)
    write_scan(tmp_path, SCAN, points, raw)
    read = read_points(tmp_path, SCAN)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, points)
    labels = read_raw_labels(tmp_path, SCAN, len(points))
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, raw)
    assert (labels >> 16).any()


def test_scan_id_survives_its_text():
    assert ScanId.parse(str(SCAN)) == SCAN
    assert str(SCAN) == "00/000000"


@pytest.mark.parametrize("text", ["", "00", "00/", "/000000", "sequences/00/000000"])
def test_text_that_names_no_scan_is_refused(text):
    with pytest.raises(DataError, match="sequence/frame"):
        ScanId.parse(text)


def test_missing_layout_names_the_folder(tmp_path):
    with pytest.raises(DataError) as caught:
        list_scans(tmp_path / "nowhere", ["00"])
    assert str(tmp_path / "nowhere" / "sequences") in caught.value.message
    assert "velodyne" in caught.value.message


def test_missing_sequence_names_what_is_there(sample_data):
    with pytest.raises(DataError) as caught:
        list_scans(sample_data, ["00", "05"])
    assert str(sample_data / "sequences" / "05" / "velodyne") in caught.value.message
    assert "00, 08, 11" in caught.value.message


def test_sequence_without_scans_is_refused(sample_data):
    scan_path(sample_data, ScanId("08", "000000")).unlink()
    with pytest.raises(DataError, match=r"08.*no scans"):
        list_scans(sample_data, ["08"])


def test_what_a_download_or_a_file_manager_left_is_no_part_of_the_dataset(sample_data):
    before = list_scans(sample_data, ["00", "08"])
    sequences = sample_data / "sequences"
    (sequences / "21").mkdir()
    (sequences / "12" / "velodyne").mkdir(parents=True)
    (sequences / ".ipynb_checkpoints" / "velodyne").mkdir(parents=True)
    for name in (".ipynb_checkpoints/velodyne/000000.bin", "00/velodyne/._000000.bin"):
        (sequences / name).write_bytes(b"\0" * 16)
    assert present_sequences(sample_data) == ["00", "08", "11"]
    assert list_scans(sample_data, ["00", "08"]) == before
    assert hidden_entries(sample_data, ["00", "08"]) == [
        "sequences/.ipynb_checkpoints",
        "sequences/00/velodyne/._000000.bin",
    ]
    with pytest.raises(DataError, match="no scans"):
        list_scans(sample_data, ["21"])


def test_a_folder_that_cannot_be_listed_is_named_where_it_is_wanted(sample_data):
    folder = sample_data / "sequences" / "05" / "velodyne"
    folder.parent.mkdir()
    # A link to itself: the one kind of unreadable folder that is so for the superuser as well.
    folder.symlink_to(folder)
    assert len(list_scans(sample_data, ["00"])) == 2
    with pytest.raises(DataError) as caught:
        list_scans(sample_data, ["05"])
    assert f"{folder}: cannot be read" in caught.value.message
    labels = label_path(sample_data, SCAN)
    labels.unlink()
    labels.symlink_to(labels)
    with pytest.raises(DataError, match=r"000000.label: cannot be read"):
        has_labels(sample_data, SCAN)


@pytest.mark.parametrize("cut", [1, 4, 15])
def test_truncated_scan_names_the_file(sample_data, cut):
    path = scan_path(sample_data, SCAN)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match="truncated") as caught:
        read_points(sample_data, SCAN)
    assert str(path) in caught.value.message


def test_empty_scan_names_the_file(sample_data):
    path = scan_path(sample_data, SCAN)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty") as caught:
        read_points(sample_data, SCAN)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 3])
def test_value_that_is_not_finite_names_file_and_row(sample_data, value, column):
    path = scan_path(sample_data, SCAN)
    points = np.fromfile(path, np.float32).reshape(-1, 4)
    points[[17, 900], column] = value
    points.tofile(path)
    with pytest.raises(DataError) as caught:
        read_points(sample_data, SCAN)
    assert str(path) in caught.value.message
    assert "2 of 1500 points" in caught.value.message
    assert "row 17" in caught.value.message


@pytest.mark.parametrize("extra", [-4, -1, 4])
def test_labels_of_another_length_name_both_files(sample_data, extra):
    path = label_path(sample_data, SCAN)
    data = path.read_bytes()
    path.write_bytes(data[:extra] if extra < 0 else data + bytes(extra))
    with pytest.raises(DataError) as caught:
        read_raw_labels(sample_data, SCAN, 1500)
    assert str(path) in caught.value.message
    assert str(scan_path(sample_data, SCAN)) in caught.value.message


def test_a_folder_in_place_of_labels_is_not_taken_for_a_scan_without_labels(sample_data):
    path = label_path(sample_data, SCAN)
    path.unlink()
    path.mkdir()
    assert has_labels(sample_data, SCAN)
    with pytest.raises(DataError, match=path.name):
        read_raw_labels(sample_data, SCAN, 1500)


def test_missing_files_are_named(sample_data):
    absent = ScanId("00", "000099")
    with pytest.raises(DataError) as caught:
        read_points(sample_data, absent)
    assert str(scan_path(sample_data, absent)) in caught.value.message
    with pytest.raises(DataError) as caught:
        read_raw_labels(sample_data, absent, 1500)
    assert str(label_path(sample_data, absent)) in caught.value.message


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../victim", "a/b", "a\\b", ".hidden", "/etc", "a\x00b", "a\nb", "\x1b[2J", "x" * 201]
)
def test_a_name_that_leads_elsewhere_or_cannot_be_printed_is_no_name_of_a_scan(name):
    for names in ((name, "000000"), ("00", name)):
        with pytest.raises(DataError, match="cannot be the name of a"):
            ScanId(*names)


@pytest.mark.parametrize("name", ["00", "000000", "scene-0061", "n015-2018+0800__LIDAR_TOP__1.pcd", "größe 1", "a..b"])
def test_names_of_other_datasets_are_names(name):
    assert str(ScanId(name, name)) == f"{name}/{name}"
    assert pickle.loads(pickle.dumps(ScanId(name, name))) == (name, name)
