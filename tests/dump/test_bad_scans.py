"""Scans and targets that cannot be used, and stores and disks that fail: each stops the dump or is skipped, by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.skipped import read_skipped
from stage1_dump_teacher.__main__ import main as stage_one
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher
from tests.shared.dataset_writer import street_scan, write_dataset, write_scan
from tests.shared.kitti import list_scans, read_points
from tests.shared.reduced import STREET_GRID, command, dump, fail, read_all, same_targets, succeed

TRAIN = "splits=[train]"


# Scans that cannot be used


def truncate(root: Path, scan: ScanId) -> Path:
    path = scan_path(root, scan)
    path.write_bytes(path.read_bytes()[:-3])
    return path


def empty(root: Path, scan: ScanId) -> Path:
    scan_path(root, scan).write_bytes(b"")
    return scan_path(root, scan)


def make_nan(root: Path, scan: ScanId) -> Path:
    points = read_points(root, scan).copy()
    points[5, 2] = np.nan
    write_scan(root, scan, points)
    return scan_path(root, scan)


def shorten_labels(root: Path, scan: ScanId) -> Path:
    path = label_path(root, scan)
    path.write_bytes(path.read_bytes()[:-4])
    return path


def mislabel(root: Path, scan: ScanId) -> Path:
    points, raw = street_scan(600)
    raw[3] = 12345
    write_scan(root, scan, points, raw)
    return label_path(root, scan)


BAD = ScanId("00", "000001")


@pytest.mark.parametrize("spoil", [truncate, empty, make_nan, shorten_labels, mislabel])
def test_a_bad_scan_stops_the_dump_naming_it_and_what_is_written_stays(data, cache, reduced_teacher, spoil):
    named = spoil(data, BAD)
    assert str(named) in fail(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN))
    store = TargetStore.open(cache)
    assert (BAD, 0) not in store.finished()
    assert not list(cache.rglob("*.partial"))
    read_all(store, data)


def test_bad_scans_are_skipped_on_request_listed_and_dumped_when_repaired(data, cache, reduced_teacher):
    original = scan_path(data, BAD).read_bytes()
    named = truncate(data, BAD)
    words = (data, reduced_teacher, cache, STREET_GRID, TRAIN, "views.count=2", "on_bad_scan=skip")
    output = succeed(dump(*words))
    assert "4 scan-views written" in output
    assert output.count(f"skipped  scan {BAD}") == 2
    assert str(named) in output
    assert (BAD, 0) not in TargetStore.open(cache).finished()

    scan_path(data, BAD).write_bytes(original)
    assert "2 scan-views written" in succeed(dump(*words))
    assert (BAD, 1) in TargetStore.open(cache).finished()


def test_scans_that_the_teacher_sees_together_have_the_targets_of_each_alone(data, cache, reduced_teacher):
    """With bad scans among them, and fewer in the last batch."""
    bad = make_nan(data, ScanId("00", "000001"))
    words = (data, reduced_teacher, STREET_GRID, TRAIN, "on_bad_scan=skip", "voxel_features=true")
    alone, together = cache / "alone", cache / "together"
    succeed(dump(*words[:2], alone, *words[2:]))
    assert str(bad) in succeed(dump(*words[:2], together, *words[2:], "batch_size=3"))
    expected, found = (read_all(TargetStore.open(store), data) for store in (alone, together))
    assert found.keys() == expected.keys()
    assert len(found) == len(list_scans(data, ["00"])) - 1
    for item, targets in found.items():
        assert same_targets(targets, expected[item], tolerance=1e-5), item


def far_away(root: Path, scan: ScanId) -> None:
    points = read_points(root, scan).copy()
    points[3, 0] = 1e9
    write_scan(root, scan, points)


def dazzling(root: Path, scan: ScanId) -> None:
    points = read_points(root, scan).copy()
    points[:, 3] *= 1e6
    write_scan(root, scan, points)


@pytest.mark.parametrize("spoil", [far_away, dazzling])
def test_numbers_that_no_sensor_says_are_the_fault_of_the_scan(data, cache, reduced_teacher, spoil):
    spoil(data, BAD)
    words = (data, reduced_teacher, cache, STREET_GRID, TRAIN, "encoding.logits=float16")
    message = fail(dump(*words))
    assert str(scan_path(data, BAD)) in message
    assert "no sensor measures" in message
    assert "encoding" not in message
    output = succeed(dump(*words, "on_bad_scan=skip"))
    assert "1 scan-view written" in output
    assert "1 scan-view skipped" in output


def spoil_targets(monkeypatch, chosen) -> None:
    """Let the teacher say infinity for those of its scans, counted from 0, for which `chosen` says so."""
    scans, answer = iter(range(1000)), Cylinder3DTeacher.targets

    def spoilt(*arguments):
        targets = answer(*arguments)
        if chosen(next(scans)):
            targets.logits[0, 0] = float("inf")
        return targets

    monkeypatch.setattr(Cylinder3DTeacher, "targets", spoilt)


def test_a_scan_whose_targets_cannot_be_stored_is_skipped_like_a_bad_one(data, cache, reduced_teacher, monkeypatch):
    spoil_targets(monkeypatch, lambda number: number == 0)
    words = (data, reduced_teacher, cache, STREET_GRID, TRAIN, "on_bad_scan=skip")
    output = succeed(dump(*words))
    assert "2 scan-views written" in output
    assert "skipped  scan 00/000000, view 0: logits: the teacher produced NaN or infinity. Check the coord" in output
    assert "1 scan-view written" in succeed(dump(*words))


def test_a_teacher_that_says_nan_of_every_scan_is_refused(tmp_path, cache, reduced_teacher, monkeypatch):
    write_dataset(tmp_path / "dataset", {"00": 9}, points=200)
    spoil_targets(monkeypatch, lambda number: True)
    words = (tmp_path / "dataset", reduced_teacher, cache, STREET_GRID, TRAIN, "on_bad_scan=skip")
    assert "scan 00/000005, view 0: logits: the teacher produced NaN" in fail(dump(*words))


def test_what_was_skipped_and_why_is_recorded_until_it_is_dumped(data, cache, reduced_teacher):
    original = scan_path(data, BAD).read_bytes()
    named = truncate(data, BAD)
    words = (data, reduced_teacher, cache, STREET_GRID, TRAIN, "views.count=2", "on_bad_scan=skip")
    succeed(dump(*words))
    store = TargetStore.open(cache)
    recorded = read_skipped(store, store.finished())
    assert list(recorded) == [(BAD, 0), (BAD, 1)]
    assert all(str(named) in reason and "truncated" in reason for reason in recorded.values())
    output = succeed(command(stage_one, "info", "--cache", cache))
    assert "2 scan-views skipped by the dump" in output
    assert f"  {BAD} view 1: {named}: " in output
    verified = succeed(command(stage_one, "verify", "--cache", cache, "--data", data))
    assert "4 of 4 scan-views checked: nothing wrong" in verified
    assert "2 scan-views skipped by the dump" in verified

    succeed(command(stage_one, "merge", "--from", cache, "--archive", cache.with_suffix(".zip")))
    succeed(command(stage_one, "convert", "--cache", cache, "--to", f"{cache}-small", "--profile", "train"))
    for other in (f"{cache}.zip", f"{cache}-small"):
        assert read_skipped(TargetStore.open(other), set()) == recorded

    scan_path(data, BAD).write_bytes(original)
    assert "2 scan-views written" in succeed(dump(*words))
    assert read_skipped(store, set()) == {}
    assert "skipped by" not in succeed(command(stage_one, "info", "--cache", cache))


# A store that vanishes meanwhile


@pytest.mark.parametrize("part", ["", "sequences"])
def test_a_store_that_is_deleted_during_the_dump_is_noticed(data, cache, reduced_teacher, monkeypatch, part):
    scans, answer = iter(range(3)), Cylinder3DTeacher.targets

    def deleting(*arguments):
        if next(scans) == 1:
            shutil.rmtree(cache / part)
        return answer(*arguments)

    monkeypatch.setattr(Cylinder3DTeacher, "targets", deleting)
    message = fail(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN))
    expected = "1 of 3 scan-views were there and are gone" if part else "deleted or replaced while this dump wrote"
    assert expected in message
    assert "run the same command again" in message


def test_a_teacher_that_says_nan_stops_the_dump_naming_the_scan(data, cache, reduced_teacher, monkeypatch):
    answer = Cylinder3DTeacher.targets

    def spoilt(*arguments):
        targets = answer(*arguments)
        targets.logits[0, 0] = float("nan")
        return targets

    monkeypatch.setattr(Cylinder3DTeacher, "targets", spoilt)
    assert "scan 00/000000, view 0: logits: the teacher produced NaN" in fail(
        dump(data, reduced_teacher, cache, STREET_GRID, TRAIN)
    )
    assert TargetStore.open(cache).finished() == set()


def test_a_disk_that_will_be_full_stops_the_dump_and_keeps_what_is_there(tmp_path, cache, reduced_teacher, monkeypatch):
    data = tmp_path / "dataset"
    write_dataset(data, {"00": 12}, points=200)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "GB are free" in fail(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN))
    finished = read_all(TargetStore.open(cache), data)
    assert 5 <= len(finished) < 12
