"""nuScenes-lidarseg: scenes, scans and labels from its tables, their cache, and what is said of damaged files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.base.errors import DataError, SettingsError
from common.scans.dataset import Dataset, open_dataset
from common.scans.formats.nuscenes import NuScenes
from common.scans.label_map import LabelMap, load_label_map
from common.scans.scan_id import ScanId
from stage1_dump_teacher.doctor import check_data
from tests.benchmarks.nuscenes_devkit import main as compare_with_devkit
from tests.shared.nuscenes_writer import LABEL_MAP, START, category_names, lidar_token, write_nuscenes
from tests.shared.reduced import command

MINI = {"scene-0061": 3, "scene-0103": 2}
FIRST = ScanId("scene-0061", str(START))


@pytest.fixture(scope="module")
def label_map() -> LabelMap:
    return load_label_map(LABEL_MAP)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A mini version of two scenes. Read only."""
    root = tmp_path_factory.mktemp("nuscenes") / "nuscenes"
    write_nuscenes(root, "v1.0-mini", MINI, columns=32)
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch) -> Path:
    """Where tables are cached, empty for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "polar-distill"


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "nuscenes"))


def open_files(root: Path, **options: object) -> NuScenes:
    return NuScenes(root, options)


def scan_file(root: Path, scan: ScanId = FIRST) -> Path:
    [found] = (root / "samples/LIDAR_TOP").glob(f"{scan.sequence}__*__{scan.frame}.pcd.bin")
    return found


def label_file(root: Path) -> Path:
    return root / "lidarseg/v1.0-mini" / f"{lidar_token('scene-0061', 0)}_lidarseg.bin"


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_files(root).scans(["scene-0061"])
    return caught.value.message


def test_scans_are_the_lidar_key_frames_by_scene_and_time(written):
    files = open_files(written)
    assert files.sequences() == list(MINI)
    scans = files.scans(MINI)
    assert scans == [ScanId(scene, str(START + 500_000 * n)) for scene, count in MINI.items() for n in range(count)]
    assert all(scan_file(written, scan).is_file() for scan in scans)
    assert files.not_on_disk(MINI) == []


def test_points_and_labels_are_those_of_the_files(written, label_map):
    dataset = Dataset.open(written, label_map)
    stored = np.fromfile(scan_file(written), np.float32).reshape(-1, 5)
    read = dataset.read(FIRST)
    np.testing.assert_array_equal(read.points, stored[:, :4])
    assert read.points.flags.c_contiguous
    assert read.points[:, 3].max() > 1
    raw = np.fromfile(label_file(written), np.uint8)
    assert read.labels is not None
    assert read.labels.tolist() == [label_map.learning_map[one] for one in raw.tolist()]
    assert len(np.unique(read.labels)) > 4


def test_the_splits_are_the_official_ones(label_map):
    sizes = {name: len(set(scenes)) for name, scenes in label_map.splits.items()}
    assert sizes == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    assert len(set(label_map.sequences(["train", "val", "test"]))) == 1000
    assert set(label_map.sequences(["mini_train", "mini_val"])) <= set(label_map.sequences(["train", "val"]))
    assert label_map.sequences(["mini_val", "scene-0061", "scene-0916"]) == ["scene-0103", "scene-0916", "scene-0061"]


def test_the_classes_are_those_of_the_challenge(label_map):
    assert (len(label_map.classes), len(label_map.learning_map), len(set(category_names()))) == (17, 32, 32)
    assert category_names()[24] == "flat.driveable_surface"
    assert sum(label_map.content.values()) == pytest.approx(1)
    assert label_map.class_shares()[11] == pytest.approx(0.2673, abs=1e-4)


def test_of_a_split_the_scenes_on_disk_are_taken_and_few_of_the_others_are_named(written, label_map):
    dataset = Dataset.open(written, label_map)
    selected = dataset.select(["train"])
    assert {scan.sequence for scan in selected.scans} == {"scene-0061"}
    [note] = selected.notes
    assert "and 694 more" in note
    with pytest.raises(DataError, match=r"no scene 'scene-0553'.*present: scene-0061, scene-0103"):
        dataset.select(["scene-0553"])
    for name in ("validation", "scene-9999"):
        with pytest.raises(DataError, match=rf"'{name}' is neither a split \(train, .*\) nor a sequence.*scene-0103"):
            dataset.select(["val", name])


def test_scans_without_a_file_are_left_out_in_one_line(root, label_map):
    scan_file(root).unlink()
    for other in (root / "samples/LIDAR_TOP").glob("scene-0103__*"):
        other.unlink()
    dataset = Dataset.open(root, label_map)
    assert dataset.files.sequences() == ["scene-0061"]
    selected = dataset.select(["mini_train"])
    assert FIRST not in selected.scans
    assert len(selected.scans) == 2
    assert any(
        "1 of 3 scans are not on this disk, left out; the first is samples/LIDAR_TOP/" in note
        for note in selected.notes
    )
    with pytest.raises(DataError, match="none of the 2 scans of scene-0103 is here"):
        dataset.files.scans(["scene-0103"])
    shutil.rmtree(root / "samples")
    with pytest.raises(DataError, match="holds no scan that the tables list"):
        open_files(root).sequences()


def test_versions_that_share_no_scene_go_together_and_others_must_be_named(root):
    write_nuscenes(root, "v1.0-test", {"scene-0077": 1}, columns=16, labelled=False)
    (root / "v1.0-trainval_meta").mkdir()
    files = open_files(root)
    assert files.sequences() == ["scene-0061", "scene-0077", "scene-0103"]
    [test_scan] = files.scans(["scene-0077"])
    assert not files.has_labels(test_scan)
    assert files.has_labels(FIRST)
    shutil.copytree(root / "v1.0-mini", root / "v1.0-trainval")
    with pytest.raises(
        SettingsError, match=r"v1.0-mini, v1.0-test, v1.0-trainval, which share scenes such as scene-0061"
    ):
        open_files(root).sequences()
    assert open_files(root, version="v1.0-mini").sequences() == list(MINI)
    assert len(open_files(root, version=["v1.0-trainval", "v1.0-test"]).sequences()) == 3
    own = root / "own.yaml"
    own.write_text("extends: configs/datasets/nuscenes.yaml\noptions: {version: v1.0-mini}\n")
    assert open_dataset(root, own).files.sequences() == list(MINI)
    with pytest.raises(SettingsError, match="versoin"):
        open_files(root, versoin="v1.0-mini")


def test_a_second_opening_reads_the_cache_and_no_table(root, caches):
    scans = open_files(root).scans(MINI)
    [cache] = caches.iterdir()
    table = root / "v1.0-mini/sample_data.json"
    status = table.stat()
    table.write_bytes(b"?" * status.st_size)
    os.utime(table, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_files(root).scans(MINI) == scans
    os.utime(table)
    assert "sample_data.json: truncated or damaged" in refused(root)
    assert cache.is_file()


def test_changed_tables_and_damaged_caches_are_read_again(root, caches):
    scans = open_files(root).scans(MINI)
    [cache] = caches.iterdir()
    whole = cache.read_bytes()
    for spoilt in (b"", whole[:-9], whole.replace(b"scene-0061", b"scene-0062"), b"[1]", b'{"stamp": 1}', b"\xff" * 9):
        cache.write_bytes(spoilt)
        assert open_files(root).scans(MINI) == scans
        assert cache.read_bytes() == whole
    write_nuscenes(root, "v1.0-mini", {"scene-0061": 1}, columns=8)
    assert open_files(root).sequences() == ["scene-0061"]


def test_nothing_is_written_beside_the_tables_and_no_cache_is_needed(root, tmp_path, monkeypatch):
    before = sorted(root.rglob("*"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_files(root).scans(MINI)) == 5
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("name", ["scene", "sample", "sample_data"])
def test_missing_truncated_and_foreign_tables_are_refused(root, name):
    table = root / f"v1.0-mini/{name}.json"
    whole = table.read_bytes()
    for spoilt in (whole[:-1], whole[: len(whole) // 2], b"", b"{}", b"[3]", whole.replace(b'"token"', b'"tokem"')):
        table.write_bytes(spoilt)
        assert f"v1.0-mini/{name}.json" in refused(root)
    table.unlink()
    assert f"{name}.json: cannot be read" in refused(root)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("filename", "samples/LIDAR_TOP/../../../secret.bin", "is no file of samples/LIDAR_TOP/"),
        ("token", "../../token", "is no file of samples/LIDAR_TOP/"),
        ("timestamp", START + 500_000, "two lidar key frames of scene-0061"),
        ("timestamp", "noon", "ValueError"),
        ("is_key_frame", False, "no lidar key frame of 1 samples"),
        ("sample_token", "f" * 32, "KeyError"),
    ],
)
def test_records_that_cannot_be_are_refused(root, field, value, said):
    table = root / "v1.0-mini/sample_data.json"
    records = json.loads(table.read_bytes())
    [record] = [one for one in records if one["token"] == lidar_token("scene-0061", 0)]
    record[field] = value
    table.write_text(json.dumps(records))
    assert said in refused(root)


def test_the_format_of_the_tables_does_not_matter(root):
    scans = open_files(root).scans(MINI)
    for options in ({"separators": (",", ":")}, {"indent": 4}):
        for table in (root / "v1.0-mini").iterdir():
            table.write_text(json.dumps(json.loads(table.read_bytes()), **options) + "\n")
        assert open_files(root).scans(MINI) == scans


def test_no_version_is_said_with_what_is_needed(tmp_path):
    assert "no folder v1.0-mini, v1.0-trainval or v1.0-test" in refused(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda points: points[:0], "0 bytes are not a whole number of points of 20 bytes"),
        (lambda points: points.ravel()[:-1], "bytes are not a whole number"),
        (lambda points: points[: len(points) // 5 * 5, :4], "not its ring"),
        (lambda points: points * np.float32([1, 1, 1, 1, -1]), "not its ring"),
        (lambda points: points + np.float32([0, 0, 0, 0, 32]), "not its ring"),
        (lambda points: np.where(points[:, :1] > 0, np.float32(np.nan), points), "hold NaN or infinity"),
        (lambda points: points * np.float32([1e6, 1, 1, 1, 1]), "no sensor"),
    ],
)
def test_files_that_are_no_scans_are_refused(root, spoil, said):
    points = np.fromfile(scan_file(root), np.float32).reshape(-1, 5)
    np.ascontiguousarray(spoil(points)).tofile(scan_file(root))
    with pytest.raises(DataError, match=said) as caught:
        open_files(root).points(FIRST)
    assert str(scan_file(root)) in caught.value.message


def test_labels_of_another_scan_and_scans_that_are_gone_are_refused(root, label_map):
    dataset = Dataset.open(root, label_map)
    label_file(root).write_bytes(label_file(root).read_bytes()[:-1])
    with pytest.raises(DataError, match="labels, but the scan has"):
        dataset.read(FIRST)
    label_file(root).write_bytes(b"\x20" * len(dataset.files.points(FIRST)))
    with pytest.raises(DataError, match=r"raw label ids \[32\]"):
        dataset.read(FIRST)
    label_file(root).unlink()
    assert dataset.read(FIRST).labels is None
    scan_file(root).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        dataset.read(FIRST)
    with pytest.raises(DataError, match="scene-0061 has no key frame 7"):
        dataset.files.points(ScanId("scene-0061", "7"))


@pytest.mark.skipif("NUSCENES_DEVKIT" not in os.environ, reason="NUSCENES_DEVKIT names no Python with nuscenes-devkit")
def test_the_devkit_reads_scores_and_takes_the_same():
    output = command(compare_with_devkit, "--python", os.environ["NUSCENES_DEVKIT"]).output
    assert output.splitlines()[-1] == "all the same", output


def test_the_doctor_says_that_scans_are_not_on_this_disk(root):
    scan_file(root).unlink()
    found = check_data(root, LABEL_MAP)
    assert found.status == "note"
    assert "4 scans, 4 with labels" in found.finding
    assert "1 more are not on this disk, the first is samples/LIDAR_TOP/scene-0061" in found.finding
