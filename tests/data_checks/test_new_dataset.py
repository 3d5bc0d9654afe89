"""Descriptions of files of one's own: what is found is what is there, and what is written opens it."""

import numpy as np
import pytest
import yaml
from plyfile import PlyData, PlyElement

from common.base.config import load_settings
from common.scans.dataset import open_dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from polar_distill import program
from stage1_dump_teacher.data_checks.found_files import find_files
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import command, fail, succeed


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "scans", "labels"),
    [
        (
            ["sequences/00/velodyne/000.bin", "sequences/00/labels/000.label", "sequences/00/voxels/000.bin"],
            "sequences/{sequence}/velodyne/{frame}.bin",
            "sequences/{sequence}/labels/{frame}.label",
        ),
        (["a/1.npy", "a/2.npy", "b/1.npy", "b/notes.txt"], "{sequence}/{frame}.npy", None),
        (["1.pcd", "2.pcd", "._1.pcd", ".ipynb_checkpoints/1.pcd"], "{frame}.pcd", None),
        (["x/1.ply", "x/2.ply", "x/3.bin"], "x/{frame}.ply", None),
        (
            ["town/scan_1.bin", "town/scan_2.bin", "gt/labels/scan_1_labels.npy", "gt/labels/scan_2_labels.npy"],
            "town/{frame}.bin",
            "gt/labels/{frame}_labels.npy",
        ),
        (["one.bag", "two.bag", "readme.md"], "{sequence}.bag", None),
        (["one/metadata.yaml", "one/one_0.db3", "two/metadata.yaml", "two/two_0.db3", "LICENSE"], "{sequence}", None),
        (
            ["00/1.bin", "01/1.bin", "gt/00/of_00/1.label", "gt/00/00/1.label", "gt/01/01/1.label"],
            "{sequence}/{frame}.bin",
            "gt/{sequence}/{sequence}/{frame}.label",
        ),
        (["run.1/metadata.yaml", "run.2/metadata.yaml", "run.3/metadata.yaml"], "{sequence}", None),
        (["unlabelled/1.bin", "unlabelled/2.bin"], "unlabelled/{frame}.bin", None),
    ],
)
def test_patterns_of_scans_and_labels(tmp_path, names, scans, labels):
    touch(tmp_path, *names)
    found = find_files(tmp_path)
    assert (found.scans, found.labels) == (scans, labels)


def write_npy(root, classes):
    """Two sequences of `.npy` with labels beside them; returns the raw labels of one scan."""
    for sequence in ("north", "south"):
        for frame in range(2):
            points, _ = street_scan(1200, frame)
            ids = classes[np.digitize(points[:, 0], (-10, 0, 10))].astype(np.uint8)
            for kind, values in (("cloud", points * (1, 1, 1, 90)), ("label", ids)):
                path = root / sequence / kind / f"{frame:03d}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)


def test_ids_of_ones_own_become_classes_to_be_named(tmp_path):
    write_npy(tmp_path / "rig", np.array([0, 3, 7, 200]))
    path = tmp_path / "rig.yaml"
    output = succeed(command(program, "new-dataset", tmp_path / "rig", "--out", path))
    assert "one for each id: name them" in output
    assert "scale 0.01" in output
    label_map = load_settings(LabelMap, path)
    assert label_map.names == ["unlabelled", "id_3", "id_7", "id_200"]
    assert label_map.splits == {"train": ["north"], "val": ["south"], "test": []}
    read = open_dataset(tmp_path / "rig", path).read(ScanId("south", "001"))
    points, _ = street_scan(1200, 1)
    np.testing.assert_allclose(read.points[:, :3], points[:, :3], rtol=1e-5)
    np.testing.assert_allclose(read.points[:, 3], 0.9 * points[:, 3], rtol=1e-4)
    assert np.unique(read.labels).tolist() == [0, 1, 2, 3]
    assert sum(label_map.content.values()) == pytest.approx(1, abs=1e-6)


def test_ids_beside_those_of_semantic_kitti_are_ignored_and_named(tmp_path):
    write_npy(tmp_path / "rig", np.array([40, 48, 10, 300 - 256]))
    for path in (tmp_path / "rig").glob("*/label/000.npy"):
        labels = np.load(path).astype(np.uint16)
        labels[:100] = 300
        np.save(path, labels)
    output = succeed(command(program, "new-dataset", tmp_path / "rig", "--out", tmp_path / "rig.yaml"))
    assert "ids [300] are not SemanticKITTI's" in output
    assert "  300: 0    # unlabeled; 4.167% of the points, not SemanticKITTI's: which class?" in (
        (tmp_path / "rig.yaml").read_text()
    )
    assert len(load_settings(LabelMap, tmp_path / "rig.yaml").classes) == 20


def test_files_that_name_their_columns_are_taken_at_their_word(tmp_path):
    points, raw = street_scan(900)
    points[:90, :3] = np.nan
    names = ("x", "y", "z", "Reflectivity", "semantic")
    rows = np.zeros(len(points), [(name, "f4") for name in names[:4]] + [("semantic", "u2")])
    for place, name in enumerate(names[:4]):
        rows[name] = points[:, place]
    rows["semantic"] = raw & 0xFFFF
    (tmp_path / "scans").mkdir()
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "scans" / "000.ply"))
    path = tmp_path / "mine.yaml"
    output = succeed(command(program, "new-dataset", tmp_path / "scans", "--out", path))
    assert "column semantic" in output
    assert "NaN          10.0% of the points" in output
    assert "one sequence only" in output
    options = load_settings(LabelMap, path).options
    assert (options["reflectance"], options["label_column"], options["drop_origin"]) == (
        "Reflectivity",
        "semantic",
        True,
    )
    read = open_dataset(tmp_path / "scans", path).read(ScanId("00", "000"))
    assert len(read.points) == 810
    assert read.labels is not None


def test_a_description_is_not_replaced_unless_asked(tmp_path, monkeypatch):
    write_npy(tmp_path / "rig", np.array([0, 1, 2, 3]))
    monkeypatch.chdir(tmp_path)
    succeed(command(program, "new-dataset", "rig"))
    (tmp_path / "rig.yaml").write_text("mine")
    assert "--overwrite" in fail(command(program, "new-dataset", "rig"))
    assert (tmp_path / "rig.yaml").read_text() == "mine"
    succeed(command(program, "new-dataset", "rig", "--overwrite"))
    assert yaml.safe_load((tmp_path / "rig.yaml").read_text())["name"] == "rig"


def test_folders_without_usable_scans_are_refused_with_what_is_there(tmp_path):
    out = ("--out", tmp_path / "out.yaml")
    touch(tmp_path / "pictures", "1.png", "2.png", "notes.txt")
    message = fail(command(program, "new-dataset", tmp_path / "pictures", *out))
    assert "no scans here" in message
    assert "2 .png" in message
    assert "not a folder" in fail(command(program, "new-dataset", tmp_path / "absent", *out))
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "000.bin").write_bytes(np.full(600, 2.0, "<f4").tobytes())
    assert "do not look like rows" in fail(command(program, "new-dataset", tmp_path / "noise", *out))
    assert not (tmp_path / "out.yaml").exists()


def test_scans_of_any_number_of_points_are_read_with_their_own_columns(tmp_path):
    for number, count in enumerate((901, 903, 1001)):
        rows = np.column_stack((street_scan(count, number)[0], np.arange(count) % 16)).astype("<f4")
        (tmp_path / "rig").mkdir(exist_ok=True)
        rows.tofile(tmp_path / "rig" / f"{number}.bin")
    output = succeed(command(program, "new-dataset", tmp_path / "rig", "--out", tmp_path / "rig.yaml"))
    assert "looked at    3 of them, 935 points each" in output
    assert "could not be read" not in output
    read = open_dataset(tmp_path / "rig", tmp_path / "rig.yaml").read(ScanId("00", "2"))
    assert len(read.points) == 1001
    assert read.labels is None


def test_a_name_that_no_scan_can_have_is_passed_over_by_all_commands(tmp_path):
    for frame in ("0", "1", "line\nbreak"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{frame}.bin").write_bytes(street_scan()[0].astype("<f4").tobytes())
    output = succeed(command(program, "new-dataset", tmp_path, "--out", tmp_path / "own.yaml"))
    assert "scans        2 in 1 sequence" in output
    assert "left out     1 .bin" in output
    selection = open_dataset(tmp_path, tmp_path / "own.yaml").select(["train"])
    assert [scan.frame for scan in selection.scans] == ["0", "1"]
    assert any(note.startswith("left out a/line\\nbreak.bin: ") for note in selection.notes)


def test_links_are_followed_and_damage_in_one_file_does_not_hide_the_others(tmp_path):
    disk, rig = tmp_path / "disk", tmp_path / "rig"
    write_npy(disk, np.array([0, 3, 7, 200]))
    spoilt = np.load(disk / "south/cloud/001.npy")
    spoilt[5, 3] = 3e38
    np.save(disk / "south/cloud/001.npy", spoilt)
    (disk / "north/cloud/000.npy").write_bytes(b"")
    rig.mkdir()
    for name in ("north", "south"):
        (rig / name).symlink_to(disk / name)
    (disk / "north/around").symlink_to(rig)
    output = succeed(command(program, "new-dataset", rig, "--out", tmp_path / "rig.yaml"))
    assert "4 in 2 sequences: {sequence}/cloud/{frame}.npy" in output
    assert "scale 0.01" in output
    assert "1 could not be read, the first" in output
