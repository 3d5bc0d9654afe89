"""`predict FILES`: a cloud gets the same labels in any kind of file as in a dataset; bags get a topic more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.scans.label_map import LabelMap
from common.scans.readers import Bag, read_file
from common.scans.readers.bags import message_columns
from common.scans.scan_id import ScanId
from stage2_train_student import Predictor
from stage2_train_student.__main__ import main
from stage2_train_student.evaluation.labelled_bag import new_bag, twins_of
from stage2_train_student.evaluation.own_files import own_scans
from tests.shared.cloud_writer import WRITERS, cloud_message, write_bag, write_bin, write_npy, write_pcd, write_ply
from tests.shared.kitti import read_points
from tests.shared.reduced import command, fail, one_thread, succeed
from tests.shared.small_runs import write_small_run

COLUMNS = ("x", "y", "z", "intensity")


@pytest.fixture(scope="module")
def predictor(small_run) -> Predictor:
    """Its student."""
    return Predictor.load(small_run, device="cpu")


@pytest.fixture(scope="module")
def clouds(streets) -> list[dict[str, np.ndarray]]:
    """Made-up scans by column."""
    scans = [read_points(streets, ScanId("00", f"{frame:06d}")) for frame in range(3)]
    return [dict(zip(COLUMNS, np.ascontiguousarray(points.T), strict=True)) for points in scans]


@pytest.fixture(scope="module")
def expected(clouds, predictor) -> list[np.ndarray]:
    """Raw labels of these scans."""
    with one_thread():
        return [predictor.label_map.to_raw(predictor(np.stack([*cloud.values()], axis=1))) for cloud in clouds]


def predict(run: Path, *words) -> str:
    return succeed(command(main, "predict", *words, "--run", run, "--device", "cpu"))


def refused(run: Path, *words) -> str:
    return fail(command(main, "predict", *words, "--run", run, "--device", "cpu"))


def test_labels_that_lie_in_scans_are_not_asked_for(predictor, clouds, tmp_path):
    """A dataset's scans have them in a column; files to predict may lack it, or hold ids that nobody knows."""
    write_ply(tmp_path / "a.ply", clouds[0] | {"label": np.full(len(clouds[0]["x"]), 999, np.float32)})
    write_ply(tmp_path / "b.ply", clouds[1])
    label_map = predictor.label_map.model_copy(update={"format": "files", "options": {"label_column": "label"}})
    [own] = own_scans([tmp_path], label_map)
    assert [len(own.dataset.read(scan).points) for scan in own.scans] == [len(cloud["x"]) for cloud in clouds[:2]]


def test_every_kind_of_file_gets_labels_beside_it(small_run, clouds, expected, tmp_path):
    for number, (suffix, write) in enumerate(WRITERS.items()):
        write(tmp_path / f"{number}{suffix}", clouds[0])
    output = predict(small_run, tmp_path)
    assert "4 scans predicted in 4 files" in output
    for number in range(len(WRITERS)):
        assert str(tmp_path / f"{number}.predicted.label") in output
        np.testing.assert_array_equal(np.fromfile(tmp_path / f"{number}.predicted.label", "<u4"), expected[0])
    # What was predicted is no scan, whatever kind it has; a link to the folder itself is no folder more.
    (tmp_path / "round").symlink_to(tmp_path)
    assert "4 scans predicted in 4 files" in predict(small_run, tmp_path, "--format", "npy")
    assert "4 scans predicted in 4 files" in predict(small_run, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "3.predicted.npy"), expected[0])


def test_folders_keep_their_shape_below_out(small_run, clouds, expected, tmp_path):
    for row, name in enumerate(("one/a.bin", "one/b.bin", "two/a.bin")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_bin(tmp_path / name, clouds[row])
    (tmp_path / "one/notes.txt").write_text("no scan")
    (tmp_path / "one/._a.bin").write_text("left by a file manager")
    predict(small_run, tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out", "--batch-size", 2)
    # Predictions below a folder of scans are no scans.
    assert "3 scans predicted" in predict(small_run, tmp_path, "--out", tmp_path / "out", "--format", "ply")
    assert "3 scans predicted" in predict(small_run, tmp_path, "--out", tmp_path / "out", "--format", "ply")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.label"))
    assert written == ["one/a.label", "one/b.label", "two/a.label"]
    for name, labels in zip(written, expected, strict=True):
        np.testing.assert_array_equal(np.fromfile(tmp_path / "out" / name, "<u4"), labels)


def test_a_ply_has_points_labels_and_colours(small_run, clouds, expected, semantic_kitti, tmp_path):
    write_npy(tmp_path / "scan.npy", clouds[1])
    predict(small_run, tmp_path / "scan.npy", "--format", "ply")
    columns = read_file(tmp_path / "scan.predicted.ply").columns
    for name in COLUMNS:
        np.testing.assert_array_equal(columns[name], clouds[1][name])
    np.testing.assert_array_equal(columns["label"], expected[1])
    colours = np.stack([columns[name] for name in ("red", "green", "blue")], axis=1)
    np.testing.assert_array_equal(colours, colours_of(expected[1], semantic_kitti))


def colours_of(raw: np.ndarray, label_map: LabelMap) -> np.ndarray:
    by_id = {info.raw_id: info.colour for info in label_map.classes}
    return np.array([by_id[one] for one in raw.tolist()], np.uint8)


def test_where_nothing_came_back_there_is_no_label(small_run, clouds, expected, tmp_path):
    whole = {name: np.insert(column, [0, 700], 0) for name, column in clouds[0].items()}
    whole["x"][701] = np.nan
    write_pcd(tmp_path / "scan.pcd", whole)
    predict(small_run, tmp_path / "scan.pcd")
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "scan.predicted.label", "<u4"), np.insert(expected[0], [0, 700], 0)
    )
    assert "drop_origin=true" in refused(small_run, tmp_path / "scan.pcd", "--file-option", "drop_origin=false")
    whole["intensity"][3] = np.nan
    write_pcd(tmp_path / "scan.pcd", whole)
    assert "--file-option reflectance=null" in refused(small_run, tmp_path / "scan.pcd")


def test_other_columns_and_scales_are_options(small_run, clouds, expected, tmp_path):
    renamed = {**{name: clouds[0][name] for name in "xyz"}, "ring": clouds[0]["x"], "i": 255 * clouds[0]["intensity"]}
    write_bin(tmp_path / "scan.bin", renamed)
    words = ("columns=[x,y,z,ring,i]", "reflectance=i", f"reflectance_scale={1 / 255}")
    predict(small_run, tmp_path / "scan.bin", *(word for pair in words for word in ("--file-option", pair)))
    labels = np.fromfile(tmp_path / "scan.predicted.label", "<u4")
    assert (labels == expected[0]).mean() > 0.999
    assert "did you mean 'reflectance'" in refused(small_run, tmp_path / "scan.bin", "--file-option", "reflectence=i")


def test_what_says_how_a_file_is_read_is_named_as_an_option(small_run, clouds, tmp_path):
    renamed = {**{name: clouds[0][name] for name in "xyz"}, "ring": clouds[0]["x"], "i": clouds[0]["intensity"]}
    write_ply(tmp_path / "scan.ply", renamed)
    write_npy(tmp_path / "scan.npy", renamed)
    np.zeros(5, np.float32).tofile(tmp_path / "scan.bin")
    assert "--file-option reflectance=NAME" in refused(small_run, tmp_path / "scan.ply")
    for name in ("scan.npy", "scan.bin"):
        assert "--file-option columns=[x,y,z,intensity]" in refused(small_run, tmp_path / name)
    words = ("--file-option", "columns=x,y,z,ring,i")
    assert "list, written as [a, b, c]" in refused(small_run, tmp_path / "scan.npy", *words)


def test_a_student_of_ones_own_sensor_reads_files_as_its_dataset_does(
    small_run, clouds, expected, tmp_path, semantic_kitti_yaml
):
    import yaml

    from tests.shared.reduced import STREET_GRID

    description = yaml.safe_load(semantic_kitti_yaml.read_text())
    options = {"scans": "{frame}.bin", "labels": "{frame}.label", "columns": [*"xyz", "i"], "reflectance": "i"}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(description | {"format": "files", "options": options | {"reflectance_scale": 0.5}}))
    small = write_small_run(tmp_path / "run", f"dataset={own}", grid=STREET_GRID)
    write_bin(tmp_path / "scan.bin", {**clouds[0], "intensity": 2 * clouds[0]["intensity"]})
    predict(small, tmp_path / "scan.bin")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "scan.predicted.label", "<u4"), expected[0])


@pytest.mark.parametrize(
    ("name", "written"), [("a.bag", "a.predicted.bag"), ("b_db3", "b_db3.predicted"), ("c_mcap", "c_mcap.predicted")]
)
def test_a_bag_gets_a_topic_with_labels_and_keeps_all_others(
    small_run, clouds, expected, semantic_kitti, tmp_path, name, written
):
    # Points at the origin, which the student is not asked about, in the middle of the first cloud.
    first = {column: np.insert(values, [5, 5], 0) for column, values in clouds[0].items()}
    labels = [np.insert(expected[0], [5, 5], 0), *expected[1:]]
    write_bag(tmp_path / name, {"/points": [first, *clouds[1:]], "/other": clouds[:1]}, rows=1, padding=4)
    assert "several PointCloud2 topics (/other, /points)" in refused(small_run, tmp_path / name)
    output = predict(small_run, tmp_path / name, "--file-option", "topic=/points")
    assert "3 scans predicted in 1 file" in output
    for topic in ("/points", "/other"):
        with Bag(tmp_path / name, topic) as source, Bag(tmp_path / written, topic) as copy:
            assert [*map(bytes_of, source.reader.messages(source.connections))] == [
                *map(bytes_of, copy.reader.messages(copy.connections))
            ]
    with Bag(tmp_path / written, "/points/labelled") as bag:
        assert len(bag) == 3
        for index, (cloud, raw) in enumerate(zip([first, *clouds[1:]], labels, strict=True)):
            columns = bag.read(index).columns
            for column in COLUMNS:
                np.testing.assert_array_equal(columns[column], cloud[column])
            np.testing.assert_array_equal(columns["label"], raw)
            # Blue, green, red in the bytes of a float, as RViz has it.
            colours = columns["rgb"].copy().view(np.uint8).reshape(-1, 4)[:, 2::-1]
            known = raw != 0
            np.testing.assert_array_equal(colours[known], colours_of(raw[known], semantic_kitti))
    assert "is there already" in refused(small_run, tmp_path / name, "--file-option", "topic=/points")
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    if (tmp_path / written).is_dir():
        [file] = (path.name for path in (tmp_path / written).glob(f"{written}.*"))
        assert file in (tmp_path / written / "metadata.yaml").read_text()
    # A bag that was labelled before is labelled again, in place of the labels that it had.
    words = ("--file-option", "topic=/points", "--out", tmp_path / "again")
    predict(small_run, tmp_path / written, *words)
    [again] = (tmp_path / "again").iterdir()
    with Bag(again, "/points/labelled") as bag:
        assert len(bag) == 3


@pytest.mark.parametrize("name", ["a.bag", "b_db3", "c_mcap"])
def test_a_cloud_of_a_bag_may_be_empty(small_run, clouds, expected, tmp_path, name):
    # As PCL publishes it, without fields, and with fields.
    empty = {column: values[:0] for column, values in clouds[0].items()}
    write_bag(tmp_path / name, {"/points": [{}, clouds[0], empty, clouds[1]]})
    output = predict(small_run, tmp_path / name, "--out", tmp_path / "out")
    assert "4 scans predicted" in output
    assert f"nothing came back have no classes: {tmp_path / name}, message 0, {tmp_path / name}, message 2" in output
    with Bag(tmp_path / "out" / name, "/points/labelled") as bag:
        found = [bag.read(index).columns for index in range(len(bag))]
    assert list(found[0]) == ["label", "rgb"]
    for columns, raw in zip(found, ([], expected[0], [], expected[1]), strict=True):
        np.testing.assert_array_equal(columns["label"], raw)


def test_a_message_of_points_without_fields_is_damaged(clouds):
    from rosbags.typesys import Stores, get_typestore

    message = cloud_message(get_typestore(Stores.ROS1_NOETIC), clouds[0])
    with pytest.raises(ValueError, match="have no field"):
        message_columns(replace(message, fields=[]))


@pytest.mark.parametrize("words", [("--batch-size", 4), ("--views", 2)])
def test_scans_in_which_nothing_came_back_stop_no_other(small_run, clouds, expected, tmp_path, words):
    empty = {column: values[:0] for column, values in clouds[0].items()}
    nothing = dict(zip(COLUMNS, np.array([[0, np.nan], [0, 0], [0, 0], [1, 1]], np.float32), strict=True))
    write_bin(tmp_path / "a.bin", empty)
    write_bin(tmp_path / "b.bin", clouds[0])
    write_ply(tmp_path / "c.ply", empty)
    write_pcd(tmp_path / "d.pcd", nothing)
    output = predict(small_run, tmp_path, *words)
    assert "4 scans predicted in 4 files" in output
    assert "have no classes: " + ", ".join(str(tmp_path / name) for name in ("a.bin", "c.ply", "d.pcd")) in output
    labels = [np.fromfile(tmp_path / f"{name}.predicted.label", "<u4") for name in "abcd"]
    assert [*map(len, labels)] == [0, len(expected[0]), 0, 2]
    assert not labels[3].any()
    assert words[0] == "--views" or np.array_equal(labels[1], expected[0])
    predict(small_run, tmp_path / "a.bin", "--format", "npy")
    assert np.load(tmp_path / "a.predicted.npy").shape == (0,)
    predict(small_run, tmp_path / "a.bin", "--format", "ply")
    assert len(read_file(tmp_path / "a.predicted.ply")) == 0


def test_a_file_is_one_however_it_is_named_and_lands_below_the_folder_asked_for(
    small_run, clouds, tmp_path, monkeypatch
):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write_bin(tmp_path / folder / f"{folder}.bin", clouds[0])
    monkeypatch.chdir(tmp_path / "here")
    assert "2 scans predicted in 2 files" in predict(
        small_run, ".", "here.bin", "../here/here.bin", "../there", "--out", "out"
    )
    assert sorted(map(str, Path("out").rglob("*.label"))) == ["out/here/here.label", "out/there/there.label"]


def test_what_lies_beside_a_scan_is_never_written_over(small_run, clouds, tmp_path, monkeypatch):
    (tmp_path / "scans").mkdir()
    write_npy(tmp_path / "scans/a.npy", clouds[0])
    (tmp_path / "scans/a.label").write_text("truth")
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    before = (tmp_path / "scans/a.npy").read_bytes()
    monkeypatch.chdir(tmp_path)
    for out in ("scans", "scans/../scans", "link"):
        assert "would be this file" in refused(small_run, "scans", "--out", out, "--format", "npy")
        assert "perhaps with its true labels" in refused(small_run, "scans", "--out", out)
    assert (tmp_path / "scans/a.npy").read_bytes() == before
    assert (tmp_path / "scans/a.label").read_text() == "truth"


def test_labels_of_a_benchmark_are_never_written_over(small_run, clouds, tmp_path):
    for sequence in ("00", "01"):
        (tmp_path / sequence / "velodyne").mkdir(parents=True)
        write_bin(tmp_path / sequence / "velodyne/a.bin", clouds[0])
    for name in ("00/labels", "truth"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.label").write_text("truth")
    (tmp_path / "01/labels").symlink_to(tmp_path / "truth")
    scans = tmp_path / "00/velodyne"
    for out in ("00/labels", "01/labels"):
        assert "where a benchmark keeps the true labels" in refused(small_run, scans, "--out", tmp_path / out)
    assert {path.read_text() for path in tmp_path.rglob("*.label")} == {"truth"}
    (tmp_path / "00/labels/a.label").unlink()
    assert "1 scan predicted" in predict(small_run, scans, "--out", tmp_path / "00/labels")


def test_a_folder_called_labels_can_be_written_again(small_run, clouds, tmp_path):
    (tmp_path / "folder").mkdir()
    write_bin(tmp_path / "folder/a.bin", clouds[0])
    for _ in range(2):
        assert "1 scan predicted in 1 file" in predict(small_run, tmp_path / "folder", "--out", tmp_path / "labels")


def test_connections_are_copied_once_and_messages_of_unknown_form_are_left_out(clouds, tmp_path, capsys):
    from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat

    for name in ("a.bag", "b_db3"):
        write_bag(tmp_path / name, {"/points": clouds[:1]})
        with Bag(tmp_path / name) as bag, new_bag(bag, tmp_path / f"copy_{name}") as writer:
            [points] = bag.connections
            # As merged bags have it.
            twins = twins_of([points, points._replace(id=points.id + 1)], writer, bag.reader.typestore)
            assert list(twins.values()) == writer.connections * 2
    nothing = MessageDefinition(MessageDefinitionFormat.NONE, "")
    strange = points._replace(msgtype="own_msgs/msg/Thing", topic="/thing", msgdef=nothing, digest="")
    old = points._replace(msgdef=nothing, digest="")
    with Bag(tmp_path / "b_db3") as bag, new_bag(bag, tmp_path / "other") as writer:
        twins = twins_of([old, strange._replace(id=99)], writer, bag.reader.typestore)
        assert [twin.topic for twin in twins.values()] == ["/points"]
    assert "/thing left out: the bag does not say what a own_msgs/msg/Thing looks like" in capsys.readouterr().err


def bytes_of(message) -> tuple[str, int, bytes]:
    connection, time, data = message
    return connection.msgtype, time, bytes(data)


def test_a_bag_that_breaks_off_leaves_nothing(small_run, clouds, tmp_path):
    write_bag(tmp_path / "a.bag", {"/points": [clouds[0], {"x": clouds[0]["x"]}]})
    assert "no column 'y'" in refused(small_run, tmp_path / "a.bag")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bag"]


def test_what_cannot_be_predicted_is_refused_before_any_work(small_run, clouds, streets, tmp_path):
    write_bin(tmp_path / "a.bin", clouds[0])
    write_npy(tmp_path / "a.npy", clouds[0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    np.save(tmp_path / "pairs.npy", np.zeros(3, [("x", "f4", (2,)), *((name, "f4") for name in COLUMNS[1:])]))
    assert "'x' holds float32[2], not numbers" in refused(small_run, tmp_path / "pairs.npy")
    (tmp_path / "pairs.npy").unlink()
    assert "not both" in refused(small_run, tmp_path / "a.bin", "--data", streets)
    assert "--data FOLDER" in refused(small_run)
    assert "no such file or folder" in refused(small_run, tmp_path / "b.bin")
    assert "files of this kind are not read" in refused(small_run, tmp_path / "a.txt")
    assert "nothing below this folder can be read" in refused(small_run, tmp_path / "empty")
    assert "would be this file" in refused(small_run, tmp_path / "a.bin", tmp_path / "a.npy")
    assert "would be this file" in refused(small_run, tmp_path / "a.npy", "--format", "npy", "--out", tmp_path)
    assert "are for scans of a dataset" in refused(small_run, tmp_path / "a.bin", "--split", "val")
    assert "are for FILES" in refused(small_run, "--data", streets, "--format", "ply", "--out", tmp_path)
    assert "both name settings" in refused(small_run, tmp_path / "a.bin", "--experiment", "full")
    assert len(list(tmp_path.iterdir())) == 4
    # Of several, none is predicted before all are known to have a place.
    write_bag(tmp_path / "d.bag", {"/points": clouds[:1]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/d.bag").write_text("taken")
    words = (tmp_path / "a.bin", tmp_path / "d.bag", "--out")
    assert "out/d.bag: is there already" in refused(small_run, *words, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.bag"]
    said = refused(small_run, *words, tmp_path / "a.txt")
    assert f"{tmp_path / 'a.txt'}" in said
    assert "scan/s" not in said


def test_an_empty_path_is_not_the_working_folder(small_run, clouds, tmp_path, monkeypatch):
    write_bin(tmp_path / "a.bin", clouds[0])
    monkeypatch.chdir(tmp_path)
    words = ("--run", small_run, "--device", "cpu")
    for given in (("predict", "", *words), ("predict", "a.bin", "--out", "", *words), ("view", small_run, "")):
        result = command(main, *given)
        assert result.exit_code == 2
        assert "an empty path" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
