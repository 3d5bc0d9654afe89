"""Stage one through its command: what it writes, what it resumes, what it refuses."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.scans.dataset import Dataset, voxelise_view
from common.scans.formats.semantic_kitti import label_path
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, ViewPolicy, draw_view
from common.targets.store import TargetStore
from stage1_dump_teacher.__main__ import main as stage_one
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from tests.golden.golden_files import scans_folder
from tests.shared.dataset_writer import write_dataset
from tests.shared.kitti import list_scans, present_sequences
from tests.shared.reduced import (
    FULL_LAYERS,
    REAL_GRID,
    STREET_GRID,
    command,
    dump,
    dump_words,
    encoding_words,
    fail,
    file_of,
    one_thread,
    read_all,
    same_targets,
    start,
    succeed,
)

TRAIN = "splits=[train]"


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of each file of a store."""
    return {
        str(path.relative_to(store)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in store.rglob("*")
        if path.is_file()
    }


# What is written


def test_every_real_scan_is_dumped_in_every_view_labelled_or_not(real_cache):
    root = scans_folder()
    scans = list_scans(root, present_sequences(root))
    assert any(not label_path(root, scan).exists() for scan in scans)
    store = TargetStore.open(real_cache)
    assert store.finished() == {(scan, view) for scan in scans for view in range(3)}
    assert store.identity.layers == FULL_LAYERS
    assert store.identity.grid.shape == REAL_GRID
    assert not list(real_cache.rglob("*.partial"))


def test_real_targets_belong_to_the_voxels_of_the_stored_view(real_cache, semantic_kitti):
    root, grid = scans_folder(), PolarGrid.named("polarnet", REAL_GRID)
    store = TargetStore.open(real_cache)
    for scan, index in sorted(store.finished()):
        source = Dataset.open(root, semantic_kitti).read(scan)
        targets, view = store.read(scan, index, source.points)
        assert view == draw_view(ViewPolicy(), scan, index)
        assert (view == IDENTITY) == (index == 0)
        voxelised = voxelise_view(source, view, grid, semantic_kitti)
        np.testing.assert_array_equal(targets.voxels[:, 1:].numpy(), voxelised.voxels)
        occupied = {tuple(bins) for bins in voxelised.voxels[:, :2].tolist()}
        assert {tuple(bins) for bins in targets.layers["up0e"].pillars[:, 1:].tolist()} == occupied


def test_what_is_stored_is_what_the_teacher_says(street_cache, streets, reduced_teacher, semantic_kitti):
    teacher = load_teacher(reduced_teacher, torch.device("cpu"))
    grid = PolarGrid.named("polarnet", STREET_GRID)
    stored = read_all(TargetStore.open(street_cache), streets)
    for scan, index in [(ScanId("00", "000002"), 1), (ScanId("11", "000000"), 0)]:
        source = Dataset.open(streets, semantic_kitti).read(scan)
        voxelised = voxelise_view(source, draw_view(ViewPolicy(), scan, index), grid, semantic_kitti)
        with one_thread():
            live = teacher.targets(batch_scans([voxelised], STREET_GRID), tuple(FULL_LAYERS), True)
        assert same_targets(stored[scan, index], live, tolerance=1e-6)


def test_pillar_targets_are_the_maximum_over_height_of_the_voxel_features(street_cache, streets):
    for targets in read_all(TargetStore.open(street_cache), streets).values():
        for name, layer in targets.voxel_layers.items():
            highest: dict[tuple[int, ...], np.ndarray] = {}
            for bins, features in zip(layer.voxels.tolist(), layer.features.numpy(), strict=True):
                pillar = tuple(bins[:3])
                highest[pillar] = np.maximum(highest.get(pillar, features), features)
            pillars = targets.layers[name]
            assert [tuple(bins) for bins in pillars.pillars.tolist()] == sorted(highest)
            np.testing.assert_array_equal(pillars.features.numpy(), [highest[key] for key in sorted(highest)])


def test_only_the_layers_asked_for_are_kept(data, cache, reduced_teacher):
    succeed(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN, "layers=[up4e]", *encoding_words("float16")))
    targets = read_all(TargetStore.open(cache), data)[ScanId("00", "000000"), 0]
    assert list(targets.layers) == ["up4e"]
    assert targets.voxel_layers == {}


def test_the_manifest_records_what_it_was_made_with(street_cache):
    text = (street_cache / "manifest.json").read_text()
    assert torch.__version__.partition("+")[0] in text
    assert '"provenance"' in text


# Resuming


def test_a_second_run_dumps_exactly_what_is_missing(data, cache, reduced_teacher):
    words = (data, reduced_teacher, cache, STREET_GRID, TRAIN, "views.count=2")
    assert "6 scan-views written" in succeed(dump(*words))
    before, targets = files(cache), read_all(TargetStore.open(cache), data)
    assert "6 were there before" in succeed(dump(*words))
    assert files(cache) == before

    store = TargetStore.open(cache)
    lost = file_of(store, ScanId("00", "000001"), 1)
    lost.unlink()
    assert "1 scan-view written" in succeed(dump(*words))
    after = files(cache)
    assert {name for name in after if after[name] != before[name]} == {str(lost.relative_to(cache))}
    again = read_all(store, data)
    assert all(same_targets(again[key], targets[key]) for key in targets)


def test_other_settings_do_not_touch_the_store(data, cache, reduced_teacher):
    succeed(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN))
    before = files(cache)
    message = fail(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN, "views.count=2", "encoding.codec=lz4"))
    assert "views.count: the store has 1, this run has 2" in message
    assert "encoding.codec: the store has 'zstd', this run has 'lz4'" in message
    assert files(cache) == before


def test_another_teacher_does_not_touch_the_store(data, cache, reduced_teacher, tmp_path):
    succeed(dump(data, reduced_teacher, cache, STREET_GRID, TRAIN))
    before = files(cache)
    weights = torch.load(reduced_teacher)
    weights["cylinder_3d_spconv_seg.logits.bias"][1] += 1e-3
    torch.save(weights, tmp_path / "other.pt")
    assert "teacher_hash" in fail(dump(data, tmp_path / "other.pt", cache, STREET_GRID, TRAIN))
    assert files(cache) == before


@pytest.mark.parametrize("workers", [(), ("processes=true", "writers=2")], ids=["alone", "processes"])
def test_a_killed_dump_leaves_whole_scans_and_goes_on(tmp_path, reduced_teacher, workers):
    data, cache, reference = tmp_path / "dataset", tmp_path / "cache", tmp_path / "reference"
    write_dataset(data, {"00": 3, "11": 1}, points=3000, unlabelled=("11",))
    options = ("splits=[train, test]", "views.count=3", "voxel_features=true", *workers)
    process = start("-m", "stage1_dump_teacher", *dump_words(data, reduced_teacher, cache, STREET_GRID, *options))
    deadline = time.monotonic() + 120
    while not list(cache.rglob("*.zarr.zip")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output

    store = TargetStore.open(cache)
    written = store.finished()
    assert 0 < len(written) < 12
    read_all(store, data)
    summary = f"{12 - len(written)} scan-views written"
    assert summary in succeed(dump(data, reduced_teacher, cache, STREET_GRID, *options))
    succeed(dump(data, reduced_teacher, reference, STREET_GRID, *options))
    finished, whole = read_all(store, data), read_all(TargetStore.open(reference), data)
    assert len(finished) == 12
    assert all(same_targets(finished[key], whole[key]) for key in whole)


# What is refused before anything is written


def test_a_missing_teacher_is_named(data, cache, tmp_path):
    assert "no checkpoint at" in fail(dump(data, tmp_path / "none.pt", cache, STREET_GRID, TRAIN))
    assert not cache.exists()


def test_a_missing_dataset_is_named(cache, tmp_path, reduced_teacher):
    message = fail(dump(tmp_path / "nowhere", reduced_teacher, cache, STREET_GRID, TRAIN))
    assert str(tmp_path / "nowhere" / "sequences") in message
    assert not cache.exists()


def test_a_missing_sequence_is_named_with_those_that_are_there(data, cache, reduced_teacher):
    message = fail(dump(data, reduced_teacher, cache, STREET_GRID, 'splits=["21"]'))
    assert "21" in message
    assert "Sequences present: 00" in message


def test_a_teacher_with_other_classes_is_refused(data, cache, reduced_teacher, tmp_path):
    weights = torch.load(reduced_teacher)
    for name in ("weight", "bias"):
        key = f"cylinder_3d_spconv_seg.logits.{name}"
        weights[key] = weights[key][..., :17].clone()
    torch.save(weights, tmp_path / "nuscenes.pt")
    message = fail(dump(data, tmp_path / "nuscenes.pt", cache, STREET_GRID, TRAIN))
    assert "the teacher has 17 classes, dataset 'semantic_kitti' has 20" in message
    assert not cache.exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:999"])
def test_a_wrong_device_is_refused(data, cache, reduced_teacher, device):
    words = dump_words(data, reduced_teacher, cache, STREET_GRID, TRAIN)
    assert device in fail(command(stage_one, *words, "--device", device))
    assert not cache.exists()


def test_a_grid_that_cannot_be_distilled_is_refused_naming_those_that_can(data, cache, reduced_teacher):
    message = fail(dump(data, reduced_teacher, cache, (48, 45, 16), TRAIN))
    assert "choose 40 or 48" in message
    assert not cache.exists()


@pytest.mark.parametrize("shape", [(0, 40, 16), (48, -40, 16), (48, 40, 1), (65536, 65536, 32)])
def test_a_grid_that_no_scan_fits_is_refused_naming_the_setting(data, cache, reduced_teacher, shape):
    message = fail(dump(data, reduced_teacher, cache, shape, TRAIN))
    assert "grid.shape: " in message
    assert "bins" in message
    assert not cache.exists()


def test_a_partial_download_is_dumped_with_a_line_for_what_is_left_out(data, cache, reduced_teacher):
    (data / "sequences" / "01" / "velodyne").mkdir(parents=True)
    (data / "sequences" / "00" / "velodyne" / "._000000.bin").write_bytes(b"\0" * 9)
    output = succeed(dump(data, reduced_teacher, cache, STREET_GRID, "splits=[train]"))
    assert "3 scan-views written" in output
    assert "note     sequences without scans on this disk, left out: 01, 02" in output
    assert "note     left out sequences/00/velodyne/._000000.bin: names that begin with a dot" in output


def test_a_misspelt_setting_is_refused_with_the_nearest_one(data, cache, reduced_teacher):
    message = fail(dump(data, reduced_teacher, cache, STREET_GRID, "view.count=2"))
    assert "did you mean 'views'" in message
