"""Anchor sets from the dump to the student: which views a store holds, and what a training step gets from them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from common.base.config import load_settings
from common.base.errors import StoreError
from common.scans.dataset import Dataset, voxelise_view
from common.scans.label_map import load_label_map
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, AnchoredView, AnchorSet, ViewPolicy, anchor_view, draw_view, rotated_by_bins
from common.targets.composition import Anchor, anchored_targets
from common.targets.mixing import MixSettings, mixed_scan, mixed_targets
from common.targets.store import TargetStore, ViewSet
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.settings import DumpSettings
from stage2_train_student.training.data import StudentData
from stage2_train_student.training.experiment import TargetSource, student_data
from tests.shared.reduced import (
    CONFIGS,
    STREET_GRID,
    dump,
    fail,
    file_of,
    made_up_identity,
    reduced_experiment,
    same_targets,
    succeed,
    train,
)
from tests.shared.small_stores import scan_files, stage_one

ANCHORS = AnchorSet(rotations=2)
OPTIONS = ("splits=[train]", "views.anchors.rotations=2")
AZIMUTH = STREET_GRID[1]


@pytest.fixture(scope="module")
def anchor_cache(tmp_path_factory, streets, reduced_teacher) -> Path:
    """A dump of the made-up streets: two flips in two rotations, float32."""
    cache = tmp_path_factory.mktemp("anchors") / "cache"
    assert "20 scan-views written" in succeed(dump(streets, reduced_teacher, cache, STREET_GRID, *OPTIONS))
    return cache


def loader(streets: Path, cache: Path, *overrides: str) -> StudentData:
    settings = reduced_experiment(STREET_GRID, *overrides)
    return student_data(
        settings, Dataset.open(streets, load_label_map(settings.dataset)), TargetSource(TargetStore.open(cache))
    )


# The set


def test_anchors_decide_how_many_views_there_are():
    assert ViewSet(anchors=AnchorSet()).count == 8
    assert ViewSet(count=8, anchors=AnchorSet()).count == 8
    settings = load_settings(
        DumpSettings, CONFIGS / "teachers" / "cylinder3d.yaml", ["views.anchors={flips: [none, y], rotations: 3}"]
    )
    assert settings.views == ViewSet(anchors=AnchorSet(rotations=3))
    for wrong in ({"count": 3}, {"policy": ViewPolicy(seed=1)}):
        with pytest.raises(ValidationError, match="leave"):
            ViewSet(anchors=AnchorSet(), **wrong)


def test_drawn_views_keep_the_identity_that_they_had_before_there_were_anchors(semantic_kitti):
    drawn = ViewSet(count=2)
    assert drawn.model_dump() == {"count": 2, "policy": ViewPolicy().model_dump()}
    assert drawn.view(ScanId("00", "000004"), 1, 360) == draw_view(ViewPolicy(), ScanId("00", "000004"), 1)
    one, other = (made_up_identity(semantic_kitti, views=views) for views in (drawn, ViewSet(anchors=ANCHORS)))
    assert "anchors" not in one.model_dump(mode="json")["views"]
    assert one.hash != other.hash
    for identity in (one, other):
        assert type(identity).model_validate_json(identity.model_dump_json()) == identity


def test_an_anchor_store_holds_its_views_and_says_so(anchor_cache, streets):
    store = TargetStore.open(anchor_cache)
    assert store.identity.views == ViewSet(anchors=ANCHORS)
    assert len(store.finished()) == 20
    for scan, index in store.finished():
        _, view = store.read(scan, index, None)
        assert view == anchor_view(ANCHORS, index, AZIMUTH)
    output = succeed(stage_one("info", "--cache", anchor_cache))
    assert "views      4 of each scan; anchors: flips none, y in 2 rotations" in output


def test_a_dump_of_anchors_goes_on_where_it_stopped_and_refuses_another_set(
    anchor_cache, streets, reduced_teacher, tmp_path
):
    words = (streets, reduced_teacher, tmp_path / "cache", STREET_GRID)
    succeed(dump(*words, *OPTIONS))
    before = scan_files(tmp_path / "cache")
    assert before == scan_files(anchor_cache)
    name = "sequences/00/000001.v2.zarr.zip"
    (tmp_path / "cache" / name).unlink()
    assert "1 scan-view written" in succeed(dump(*words, *OPTIONS))
    assert scan_files(tmp_path / "cache") == before
    message = fail(dump(*words, "splits=[train]", "views.anchors.rotations=3"))
    assert "views.count: the store has 4, this run has 6" in message
    assert "views.anchors.rotations: the store has 2, this run has 3" in message
    assert "choose at most 3" in fail(
        dump(streets, reduced_teacher, tmp_path / "new", STREET_GRID, "splits=[train]", "views.anchors.rotations=6")
    )


# The student's side


def test_the_students_cloud_and_targets_are_composed_from_the_anchors_on_both_sides(anchor_cache, streets):
    data = loader(streets, anchor_cache, "views=anchors")
    store, grid, scan = data.store, PolarGrid.named("polarnet", STREET_GRID), ScanId("00", "000002")
    assert store is not None
    source = data.dataset.read(scan)
    views = {data.anchored_view(scan, epoch): epoch for epoch in range(40)}
    for seen, epoch in views.items():
        voxelised, encoded = data.load(scan, epoch)
        assert encoded is not None
        expected = voxelise_view(
            source,
            rotated_by_bins(anchor_view(ANCHORS, seen.anchor, AZIMUTH), seen.bins, AZIMUTH),
            grid,
            data.dataset.label_map,
        )
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(voxelised, name), value, err_msg=name)

        def anchor(index: int, bins: int) -> Anchor:
            stored, view = store.read(scan, index, None, data.layers)
            return Anchor(
                stored, batch_scans([voxelise_view(source, view, grid, data.dataset.label_map)], grid.shape), bins
            )

        nearest = anchor(seen.anchor, seen.bins)
        other = None if seen.other is None else anchor(seen.other, seen.other_bins)
        targets = anchored_targets(nearest, other, batch_scans([expected], grid.shape))
        assert same_targets(encoded.decode(), targets)
        azimuth = expected.voxels[expected.point_voxel][:, 1]
        composed = targets.logits[torch.from_numpy(voxelised.point_voxel)]
        for part, inside in ((nearest, azimuth >= max(seen.bins, 0)), (other, azimuth < seen.bins)):
            if part is None:
                continue
            stored_logits = part.targets.logits[part.cloud.point_voxel]
            same = (stored_logits == composed).all(dim=1)[torch.from_numpy(inside)].double().mean()
            assert same > 0.98, "few points lie so near a border that rounding moves them into another voxel"
    assert {(seen.anchor, seen.bins, seen.other, seen.other_bins) for seen in views} == {
        *((index, 0, None, 0) for index in range(4)),
        *((index, 16, index + 1, -16) for index in (0, 2)),
    }


def test_one_rotation_serves_all_of_them_as_well_as_it_can(streets, reduced_teacher, tmp_path):
    succeed(
        dump(streets, reduced_teacher, tmp_path / "one", STREET_GRID, "splits=[train]", "views.anchors.rotations=1")
    )
    data, scan = loader(streets, tmp_path / "one", "views=anchors"), ScanId("00", "000000")
    seen = {data.anchored_view(scan, epoch): epoch for epoch in range(40)}
    assert set(seen) == {AnchoredView(flip, bins) for flip in (0, 1) for bins in (0, 16, 32)}
    for epoch in seen.values():
        voxelised, encoded = data.load(scan, epoch)
        assert encoded is not None
        np.testing.assert_array_equal(encoded.decode().voxels[:, 1:].numpy(), voxelised.voxels)


def test_both_anchors_are_checked(anchor_cache, streets, tmp_path):
    data = loader(streets, anchor_cache, "views=anchors")
    scan, store = ScanId("00", "000001"), data.store
    assert store is not None
    epoch = next(epoch for epoch in range(60) if data.anchored_view(scan, epoch) == (0, 16, 1, -16))
    for number, index in enumerate((0, 1)):
        shutil.copytree(anchor_cache, tmp_path / str(number))
        broken = TargetStore.open(tmp_path / str(number))
        file_of(broken, scan, index).write_bytes(file_of(store, scan, 2).read_bytes())
        with pytest.raises(StoreError):
            replace(data, store=broken).load(scan, epoch)


def test_a_store_whose_anchors_stand_elsewhere_is_refused(anchor_cache, streets, tmp_path):
    data = loader(streets, anchor_cache, "views=anchors")
    scan = ScanId("00", "000001")
    shutil.copytree(anchor_cache, tmp_path / "moved")
    moved = TargetStore.open(tmp_path / "moved")
    source = data.dataset.read(scan)
    grid, view = PolarGrid.named("polarnet", STREET_GRID), rotated_by_bins(IDENTITY, 8, AZIMUTH)
    voxels = batch_scans([voxelise_view(source, view, grid, data.dataset.label_map)], grid.shape).voxels
    old, _ = moved.read(scan, 1, None)
    targets = TeacherTargets(voxels, torch.zeros(len(voxels), 20), old.layers)
    moved.write(scan, 1, view, targets, source.points)
    epoch = next(epoch for epoch in range(60) if data.anchored_view(scan, epoch).anchor == 1)
    with pytest.raises(StoreError, match="view 1 is not the expected anchor"):
        replace(data, store=moved).load(scan, epoch)


def test_scans_in_turned_views_are_mixed_with_their_composed_targets(anchor_cache, streets):
    data, scans = loader(streets, anchor_cache, "views=anchors"), [ScanId("00", f"{frame:06d}") for frame in range(5)]
    mixed_settings = data.settings.model_copy(update={"mix": MixSettings(probability=1.0)})
    mixing = replace(data, settings=mixed_settings, partners=scans)
    epochs = [epoch for epoch in range(20) if data.anchored_view(scans[0], epoch).bins]
    assert epochs
    for epoch in epochs[:3]:
        found = mixing.mixing(scans[0], epoch)
        assert found is not None
        taken = found.taken(AZIMUTH)
        (own, of_own), (other, of_other) = (data.load(scan, epoch) for scan in (scans[0], found.partner))
        mixed, targets = mixing.load(scans[0], epoch)
        expected = mixed_scan(own, other, taken)
        assert all(np.array_equal(value, vars(expected)[name]) for name, value in vars(mixed).items())
        assert of_own is not None
        assert of_other is not None
        assert targets is not None
        assert same_targets(targets.decode(), mixed_targets(of_own.decode(), of_other.decode(), taken, STREET_GRID))


def test_where_no_bins_are_left_the_anchor_itself_is_replayed(anchor_cache, streets):
    data = loader(streets, anchor_cache, "views=anchors")
    scan = ScanId("00", "000000")
    epoch = next(epoch for epoch in range(60) if data.anchored_view(scan, epoch).bins == 0)
    _, encoded = data.load(scan, epoch)
    assert data.store is not None
    stored, _ = data.store.read(scan, data.anchored_view(scan, epoch).anchor, None, data.layers)
    assert encoded is not None
    assert same_targets(encoded.decode(), stored)


def test_replay_shows_the_anchors_as_they_are(anchor_cache, streets):
    data = loader(streets, anchor_cache)
    scan = ScanId("00", "000001")
    assert {data.anchored_view(scan, epoch) for epoch in range(40)} == {AnchoredView(index, 0) for index in range(4)}


def test_anchors_need_an_anchor_set(street_cache, streets):
    with pytest.raises(StoreError, match=r"holds drawn views.*views\.anchors\.rotations=4"):
        loader(streets, street_cache, "views=anchors")


def test_anchors_are_for_cached_targets_only(streets, runs):
    message = fail(train(streets, None, runs / "online", "targets=online", "views=anchors"))
    assert "views: anchors reads a cache, but targets is online" in message


def test_a_student_trains_from_anchors(anchor_cache, streets, runs):
    output = succeed(
        train(streets, anchor_cache, runs / "anchors", "views=anchors", "steps=2", "batch_size=3", "validate_on=[]")
    )
    assert "epoch 1" in output
