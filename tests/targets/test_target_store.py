"""The target store: what is written comes back, and nothing else is ever taken for it."""

import copy
import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from common.base import files
from common.base.errors import StoreError
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, View
from common.targets.store import TargetStore
from common.targets.store.scan_file import from_linear, linear_bins
from common.targets.teacher_targets import TeacherTargets, batch_targets, split_targets, with_scan
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import (
    STREET_GRID,
    drop_members,
    encoding_of,
    file_of,
    made_up_identity,
    made_up_targets,
    same_targets,
)

SCAN = ScanId("00", "000007")
VIEW = View(rotation=12.345678901234567, flip_x=True, translation=(0.1, 0.2, 0.3))
POINTS = street_scan(50)[0]
TARGETS = made_up_targets()
CODECS = ("zstd", "lz4", "none")


@pytest.fixture
def new_store(tmp_path, semantic_kitti) -> Callable[..., TargetStore]:
    def make(**changes) -> TargetStore:
        return TargetStore.create_or_resume(tmp_path / "cache", made_up_identity(semantic_kitti, **changes), {})

    return make


@pytest.fixture
def store(new_store) -> TargetStore:
    """A store with one scan in one view."""
    made = new_store()
    made.write(SCAN, 1, VIEW, TARGETS, POINTS)
    return made


def without_voxel_features(targets: TeacherTargets) -> TeacherTargets:
    return dataclasses.replace(targets, voxel_layers={})


def with_logit(value: float) -> TeacherTargets:
    targets = copy.deepcopy(TARGETS)
    targets.logits[3, 4] = value
    return targets


def with_feature(value: float) -> TeacherTargets:
    targets = copy.deepcopy(TARGETS)
    targets.layers["up2e"].features[1, 2] = value
    return targets


def with_voxel_feature(value: float) -> TeacherTargets:
    targets = copy.deepcopy(TARGETS)
    targets.voxel_layers["up0e"].features[-1, -1] = value
    return targets


SPOILT = {
    "logits": with_logit,
    "up2e.pillar_features": with_feature,
    "up0e.voxel_features": with_voxel_feature,
}


@pytest.mark.parametrize("codec", CODECS)
def test_float32_comes_back_exactly(new_store, codec):
    store = new_store(encoding=encoding_of("float32", codec=codec))
    size = store.write(SCAN, 1, VIEW, TARGETS, POINTS)
    targets, view = store.read(SCAN, 1, POINTS, voxel_features=True)
    assert same_targets(targets, TARGETS)
    assert view == VIEW
    assert size == file_of(store, SCAN, 1).stat().st_size


@pytest.mark.parametrize("codec", CODECS)
def test_float16_comes_back_as_float32_within_its_rounding(new_store, codec):
    store = new_store(encoding=encoding_of("float16", codec=codec))
    store.write(SCAN, 1, VIEW, TARGETS, POINTS)
    targets, _ = store.read(SCAN, 1, POINTS, voxel_features=True)
    assert same_targets(targets, TARGETS, tolerance=1e-3)
    assert not same_targets(targets, TARGETS)
    assert targets.logits.dtype == torch.float32


def test_voxel_features_are_read_only_on_request(store):
    assert same_targets(store.read(SCAN, 1, POINTS)[0], without_voxel_features(TARGETS))


def test_some_layers_are_read_without_touching_the_others(store):
    drop_members(file_of(store, SCAN, 1), lambda name: name.startswith("up0e"))
    targets, _ = store.read(SCAN, 1, POINTS, layers=["up2e"])
    assert list(targets.layers) == ["up2e"]
    torch.testing.assert_close(targets.layers["up2e"].features, TARGETS.layers["up2e"].features, rtol=0, atol=0)
    targets, _ = store.read(SCAN, 1, POINTS, layers=[])
    assert targets.layers == {}
    assert torch.equal(targets.logits, TARGETS.logits)


def test_a_store_without_voxel_features_says_so(new_store):
    store = new_store(voxel_features=False)
    store.write(SCAN, 0, IDENTITY, without_voxel_features(TARGETS), POINTS)
    assert store.read(SCAN, 0, POINTS)[0].voxel_layers == {}
    with pytest.raises(StoreError, match="voxel_features=true"):
        store.read(SCAN, 0, POINTS, voxel_features=True)


def test_all_zeros_come_back(new_store):
    zeros = copy.deepcopy(TARGETS)
    zeros.logits.zero_()
    zeros.layers["up2e"].features.zero_()
    store = new_store()
    store.write(SCAN, 0, IDENTITY, zeros, POINTS)
    assert same_targets(store.read(SCAN, 0, POINTS, voxel_features=True)[0], zeros)


@given(shape=st.tuples(*[st.integers(1, 40)] * 3), data=st.data())
def test_linear_coordinates_are_invertible(shape, data):
    linear = sorted(data.draw(st.sets(st.integers(0, int(np.prod(shape)) - 1), min_size=1, max_size=20)))
    bins = from_linear(torch.tensor(linear, dtype=torch.int32), shape)
    assert bins.dtype == torch.int64
    assert (bins[:, 0] == 0).all()
    assert linear_bins(bins, shape).tolist() == linear


def test_zarr_alone_opens_the_file(store):
    with zarr.storage.ZipStore(file_of(store, SCAN, 1), mode="r") as zip_store:
        group = zarr.open_group(zip_store, mode="r")
        assert group.metadata.zarr_format == 3
        assert group.attrs["scan"] == str(SCAN)
        assert group.attrs["view"]["rotation"] == VIEW.rotation
        rho, phi, z = np.unravel_index(group["voxels.48x40x16"][:], STREET_GRID)
        np.testing.assert_array_equal(np.stack((rho, phi, z), 1), TARGETS.voxels[:, 1:].numpy())
        rho, phi = np.unravel_index(group["pillars.24x20"][:], (24, 20))
        np.testing.assert_array_equal(np.stack((rho, phi), 1), TARGETS.layers["down1c"].pillars[:, 1:].numpy())
        np.testing.assert_array_equal(group["logits"][:], TARGETS.logits.numpy())
        np.testing.assert_array_equal(
            group["up2e.pillar_features"][:], TARGETS.layers["up2e"].features.numpy(), strict=True
        )
        assert group.attrs["features"]["down1c.voxel_features"] == {"shape": [24, 20, 8], "encoding": "float32"}


def test_the_zip_holds_each_member_once_and_stored(store):
    with zipfile.ZipFile(file_of(store, SCAN, 1)) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("array", SPOILT)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_naming_the_array(new_store, array, value):
    store = new_store()
    with pytest.raises(StoreError, match=rf"scan 00/000007, view 1: {array}: .*NaN"):
        store.write(SCAN, 1, VIEW, SPOILT[array](value), POINTS)
    assert not list(Path(store.location).rglob("*000007*"))


@pytest.mark.parametrize("array", SPOILT)
def test_a_value_too_large_for_float16_is_refused_naming_the_array(new_store, array):
    store = new_store(encoding=encoding_of("float16"))
    with pytest.raises(StoreError, match=rf"{array}: .*7e\+04, too large for float16\..* the scan"):
        store.write(SCAN, 1, VIEW, SPOILT[array](-7e4), POINTS)
    assert store.finished() == set()


def test_layers_of_one_resolution_with_different_coordinates_are_refused(new_store):
    targets = copy.deepcopy(TARGETS)
    layer = targets.layers["up2e"]
    targets.layers["up2e"] = dataclasses.replace(layer, pillars=layer.pillars[:-1], features=layer.features[:-1])
    with pytest.raises(StoreError, match=r"pillars\.24x20"):
        new_store().write(SCAN, 1, VIEW, targets, POINTS)


# Whole or absent


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["flush_to_disk", "Path.replace"])
def test_an_interrupted_write_leaves_nothing(new_store, monkeypatch, step, error):
    def interrupt(*_):
        raise error

    store = new_store()
    monkeypatch.setattr(
        *{"flush_to_disk": (files, "flush_to_disk"), "Path.replace": (Path, "replace")}[step], interrupt
    )
    with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
        store.write(SCAN, 1, VIEW, TARGETS, POINTS)
    assert [path.name for path in Path(store.location).rglob("*") if path.is_file()] == ["manifest.json"]
    assert store.finished() == set()


def test_an_interrupted_write_leaves_the_file_that_was_there(store, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush_to_disk", fail)
    with pytest.raises(StoreError, match="No space left"):
        store.write(SCAN, 1, VIEW, made_up_targets(5), POINTS)
    assert same_targets(store.read(SCAN, 1, POINTS, voxel_features=True)[0], TARGETS)


def test_finished_lists_whole_files_only(store):
    other = ScanId("11", "000000")
    store.write(other, 0, IDENTITY, TARGETS, POINTS)
    file_of(store, SCAN, 0).with_suffix(".zip.4711.partial").write_bytes(b"half")
    assert store.finished() == {(SCAN, 1), (other, 0)}


# Batches


def test_targets_are_batched_with_the_scans_number():
    one, other = made_up_targets(1), made_up_targets(2)
    batch = batch_targets([one, other])
    assert batch.voxels[:, 0].unique_consecutive().tolist() == [0, 1]
    first = batch.voxels[:, 0] == 0
    assert torch.equal(batch.logits[first], one.logits)
    assert torch.equal(batch.logits[~first], other.logits)
    for name, layer in batch.layers.items():
        dense = layer.dense(2)
        assert torch.equal(dense[:1], one.layers[name].dense(1))
        assert torch.equal(dense[1:], other.layers[name].dense(1))
    for name, voxel_layer in batch.voxel_layers.items():
        of_scans = one.voxel_layers[name], other.voxel_layers[name]
        assert torch.equal(voxel_layer.features, torch.cat([layer.features for layer in of_scans]))
        expected = [with_scan(layer.voxels, row) for row, layer in enumerate(of_scans)]
        assert torch.equal(voxel_layer.voxels, torch.cat(expected))


def test_scans_with_different_layers_do_not_batch():
    one, other = made_up_targets(1), made_up_targets(2)
    other.layers.pop("up2e")
    with pytest.raises(StoreError, match="different teacher layers"):
        batch_targets([one, other])
    with pytest.raises(StoreError, match="different teacher layers"):
        batch_targets([one, dataclasses.replace(one, voxel_layers={})])


def test_targets_of_a_batch_are_those_of_its_scans():
    scans = [made_up_targets(seed) for seed in range(3)]
    for part, scan in zip(split_targets(batch_targets(scans), 3), scans, strict=True):
        assert same_targets(part, scan)
    [alone] = split_targets(scans[0], 1)
    assert alone is scans[0]
    layer = scans[0].voxel_layers["up0e"]
    voxels = torch.cat((layer.voxels, with_scan(layer.voxels, 1)))
    both = dataclasses.replace(layer, voxels=voxels, features=torch.cat((layer.features, -layer.features)))
    first, second = split_targets(TeacherTargets(voxels, torch.zeros(len(voxels), 20), {}, {"up0e": both}), 2)
    assert torch.equal(first.voxel_layers["up0e"].features, layer.features)
    assert torch.equal(second.voxel_layers["up0e"].features, -layer.features)
    assert torch.equal(second.voxel_layers["up0e"].voxels, layer.voxels)
