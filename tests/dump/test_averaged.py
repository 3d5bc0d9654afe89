"""Targets averaged over views and over teachers: their numbers by hand, and what a store says of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.scans.formats.semantic_kitti import scan_path
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import ViewPolicy, apply_view, draw_view
from common.targets.store import TargetStore, logits_of_points
from common.targets.transport import mean_over_points
from stage1_dump_teacher.__main__ import main as stage_one
from stage1_dump_teacher.teachers.averaged import POLICY
from stage1_dump_teacher.teachers.loading import load_named_teacher
from tests.golden.golden_files import golden_weights, scans_folder
from tests.shared.dataset_writer import write_dataset
from tests.shared.kitti import read_points
from tests.shared.reduced import (
    REAL_GRID,
    STREET_GRID,
    command,
    dump,
    dump_words,
    fail,
    read_all,
    same_targets,
    succeed,
)

SCAN = ScanId("00", "000000")
TRAIN = "splits=[train]"


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory) -> Path:
    """A second teacher: the first one, with other thresholds in its last layer."""
    weights = golden_weights("teacher_reduced")
    weights["cylinder_3d_spconv_seg.logits.bias"] = weights["cylinder_3d_spconv_seg.logits.bias"] + torch.arange(20) / 5
    path = tmp_path_factory.mktemp("teacher") / "other.pt"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Two scans of made-up streets."""
    root = tmp_path_factory.mktemp("few") / "dataset"
    write_dataset(root, {"00": 2}, points=500)
    return root


def test_averaged_views_are_single_dumps_carried_back_by_hand(tmp_path, reduced_teacher):
    data = tmp_path / "dataset"
    scan_path(data, SCAN).parent.mkdir(parents=True)
    shutil.copy(scan_path(scans_folder(), SCAN), scan_path(data, SCAN))
    single, averaged = tmp_path / "single", tmp_path / "averaged"
    succeed(dump(data, reduced_teacher, single, REAL_GRID, TRAIN, "views.count=3", "views.policy.scale=0.05"))
    succeed(dump(data, reduced_teacher, averaged, REAL_GRID, TRAIN, "views_averaged=3"))
    store, found = TargetStore.open(single), TargetStore.open(averaged)
    grid = store.identity.polar_grid
    points, of_points = read_points(data, SCAN), []
    for index in range(3):
        targets, view = store.read(SCAN, index, points)
        logits = logits_of_points(targets, apply_view(points, view), grid)
        of_points.append(logits.double().softmax(dim=1))
    batch = batch_scans([voxelise(points, grid)], grid.shape)
    expected = mean_over_points(torch.stack(of_points).mean(dim=0), batch)
    stored, alone = found.read(SCAN, 0, points)[0], store.read(SCAN, 0, points)[0]
    assert float((stored.logits.double().softmax(dim=1) - expected).abs().max()) < 1e-5
    assert float((alone.logits.double().softmax(dim=1) - expected).abs().max()) > 0.1
    assert same_targets(stored, replace(alone, logits=stored.logits))


def test_batches_change_nothing_and_views_are_made_from_the_stored_one(tmp_path, few, reduced_teacher):
    for name, size in (("one", 1), ("two", 2)):
        words = (f"batch_size={size}", "views.count=2", "views_averaged=2")
        succeed(dump(few, reduced_teacher, tmp_path / name, STREET_GRID, TRAIN, *words))
    one, two = (read_all(TargetStore.open(tmp_path / name), few) for name in ("one", "two"))
    assert all(same_targets(one[item], two[item], tolerance=1e-5) for item in one)
    teacher = load_named_teacher("cylinder3d", reduced_teacher, torch.device("cpu"))
    grid, points = PolarGrid.named("polarnet", STREET_GRID), read_points(few, SCAN)
    stored, total = apply_view(points, draw_view(ViewPolicy(), SCAN, 1)), torch.zeros(len(points), 20)
    for seen in (stored, apply_view(stored, draw_view(POLICY, SCAN, 1))):
        batch = batch_scans([voxelise(seen, grid)], STREET_GRID)
        total += teacher.targets(batch, ()).logits.softmax(dim=1)[batch.point_voxel]
    expected = mean_over_points(total.double() / 2, batch_scans([voxelise(stored, grid)], STREET_GRID))
    np.testing.assert_allclose(one[SCAN, 1].logits.softmax(dim=1), expected, atol=1e-5)


def test_teachers_are_averaged_by_weight_and_the_first_gives_the_layers(tmp_path, few, reduced_teacher, other_teacher):
    stores = {}
    for name, *words in (
        ("first", str(reduced_teacher)),
        ("other", str(other_teacher)),
        ("both", f"{reduced_teacher} {other_teacher}", "teacher_weights=[3, 1]"),
    ):
        succeed(dump(few, Path(words[0]), tmp_path / name, STREET_GRID, TRAIN, *words[1:]))
        stores[name] = read_all(TargetStore.open(tmp_path / name), few)
    for item, both in stores["both"].items():
        first, other = (stores[name][item].logits.double().softmax(dim=1) for name in ("first", "other"))
        assert float((first - other).abs().max()) > 0.1
        assert float((both.logits.double().softmax(dim=1) - (0.75 * first + 0.25 * other)).abs().max()) < 1e-6
        alone = stores["first"][item]
        assert same_targets(both, replace(alone, logits=both.logits))


def test_a_store_says_and_checks_what_was_averaged(tmp_path, few, reduced_teacher, other_teacher):
    cache, anchors = tmp_path / "cache", ("views.anchors.rotations=2", "views_averaged=2", "profile=train")
    words = dump_words(few, reduced_teacher, cache, STREET_GRID, TRAIN, *anchors)
    words[words.index("--teacher") : words.index("--teacher")] = ["--teacher", str(other_teacher)]
    said = succeed(command(stage_one, *words))
    assert "  average of 2 views of 2 teachers on cpu" in said
    assert "average  50 %: 2 views averaged (rotate True, flip True, scale 0.05, translate 0.0, seed 0) of" in said
    assert "cost     4 answers of a teacher for each scan-view, 32 in all" in said
    manifest = json.loads((cache / "manifest.json").read_text())["identity"]
    assert [share["views"] for share in manifest["averaged"].values()] == [2, 2]
    assert "8 were there before" in succeed(command(stage_one, *words))

    teachers = ("--teacher", other_teacher, "--teacher", reduced_teacher)
    on = ("--cache", cache, "--data", few, "--device", "cpu")
    assert "All as the teacher says." in succeed(command(stage_one, "verify", *on, *teachers, "--live", 3))
    one = fail(command(stage_one, "verify", *on, *teachers[:2], "--live", 1))
    assert "1 teachers are given, and 2 weights" in one
    swapped = ("--teacher", reduced_teacher, "--teacher", other_teacher)
    assert "made by the teacher" in fail(command(stage_one, "verify", *on, *swapped, "--live", 1))
    assert succeed(command(stage_one, "info", "--cache", cache)).count("average    50 %: 2 views averaged") == 2
    assert "The store is whole." in succeed(command(stage_one, "repair", *words[1:]))
    refused = fail(command(stage_one, *words, "--set", "views_averaged=3"))
    assert "averaged." in refused
    assert ".views: the store has 2, this run has 3" in refused


def test_a_path_with_a_space_stays_one_path(tmp_path, few, reduced_teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a b"):
        shutil.copy(reduced_teacher, name)
    assert "layers: up0e" in succeed(dump(few, Path("a b"), Path("cache"), STREET_GRID, TRAIN, "layers=[up0e]"))


def test_what_cannot_be_averaged_is_refused(tmp_path, few, reduced_teacher, other_teacher):
    twice, pair = Path(f"{reduced_teacher} {reduced_teacher}"), Path(f"{reduced_teacher} {other_teacher}")
    for teachers, setting, message in (
        (twice, "views_averaged=2", "is there twice; give it once, with a larger weight"),
        (pair, "teacher_weights=[1, 2, 3]", "2 teachers are given, and 3 weights"),
        (pair, "teacher_weights=[1, 0]", "teacher_weights.1: must be greater than 0"),
        (reduced_teacher, "views_averaged=0", "views_averaged: must be greater than or equal to 1"),
        (Path(f"{reduced_teacher} {tmp_path}/none.pt"), TRAIN, "none.pt"),
        (reduced_teacher, "teacher=averaged", "unknown teacher 'averaged'; choose from cylinder3d, recorded"),
    ):
        assert message in fail(dump(few, teachers, tmp_path / "cache", STREET_GRID, TRAIN, setting)), message
    assert not (tmp_path / "cache").exists()


def test_a_store_of_one_view_of_one_teacher_has_the_identity_that_it_had_before(street_cache):
    manifest = json.loads((street_cache / "manifest.json").read_text())["identity"]
    assert "averaged" not in manifest
    assert TargetStore.open(street_cache).identity.described["averaged"] == {}
