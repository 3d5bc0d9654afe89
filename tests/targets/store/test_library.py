"""The store from one's own code: the examples of cache/README.md as printed, and the functions that they use."""

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.base.errors import SettingsError
from common.targets.store import (
    PillarFeatures,
    PolarGrid,
    ScanId,
    StoreError,
    StoreIdentity,
    TargetStore,
    ViewSet,
    apply_view,
    load_label_map,
    logits_of_points,
    targets_of_points,
    targets_of_voxels,
)
from common.targets.store.contents import contents
from common.training.recorder import read_metrics
from stage1_dump_teacher.__main__ import main as stage_one
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import REPOSITORY, command, succeed, train

CLASSES = 20
POINTS = 400
GRID = PolarGrid.named("polarnet", (16, 12, 8))
SCAN = ScanId("00", "000000")


def example(words: str) -> str:
    """The one example of cache/README.md with some words in it."""
    text = (REPOSITORY / "cache" / "README.md").read_text()
    [found] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if words in block]
    return found


def run_example(words: str, **names: Any) -> dict[str, Any]:
    """Run an example as printed in the working folder; what it defined."""
    names["__name__"] = "example"
    exec(example(words), names)
    return names


def my_teacher(points: np.ndarray) -> torch.Tensor:
    """Logits that are the same for all points of a square of 0.5 m, float [N, 20]."""
    squares = torch.from_numpy(points[:, :2] * 2).floor()
    return (squares.sum(dim=1, keepdim=True) * torch.linspace(-1, 1, CLASSES)) % 8


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a dataset, and the store that the second example writes there."""
    folder = tmp_path_factory.mktemp("library")
    write_dataset(folder / "dataset", {"00": 3}, points=POINTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_example("create_or_resume", my_teacher=my_teacher)
        os.symlink("mine", "cache/semantic_kitti")
    return folder


@pytest.fixture
def there(workplace, monkeypatch) -> Path:
    """That folder as the working folder."""
    monkeypatch.chdir(workplace)
    return workplace


def test_the_example_of_one_s_own_logits_writes_what_the_teacher_said(there):
    store = TargetStore.open("cache/mine")
    assert store.finished() == {(ScanId("00", f"{frame:06d}"), view) for frame in range(3) for view in range(2)}
    points = np.fromfile("dataset/sequences/00/velodyne/000000.bin", np.float32).reshape(-1, 4)
    for index in range(2):
        store.verify(SCAN, index)
        targets, view = store.read(SCAN, index, points)
        seen = apply_view(points, view)
        expected = targets_of_points(seen, my_teacher(seen), store.identity.polar_grid)
        assert torch.equal(targets.voxels, expected.voxels)
        assert torch.equal(targets.logits, expected.logits.half().float())
    assert view == store.identity.view(SCAN, 1) != store.identity.view(SCAN, 0)


def test_the_example_of_one_s_own_loop_yields_points_with_logits(there):
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = run_example("DataLoader")["loader"]
    batches = list(loader)
    assert len(batches) == 6
    for points, logits in batches:
        assert points.shape == (POINTS, 4)
        assert logits.shape == (POINTS, CLASSES)
        assert points.dtype == logits.dtype == torch.float32
    # Most voxels of so few points hold one: what the teacher said of it comes back, rounded to half precision.
    points, logits = batches[0]
    assert (logits - my_teacher(points.numpy())).abs().median() < 0.01


def test_the_example_in_plain_zarr_reads_a_scan_file(there, monkeypatch, capsys):
    monkeypatch.chdir(there / "cache" / "mine")
    found = run_example("import zarr")
    targets, _ = TargetStore.open(".").read(SCAN, 0, None)
    assert np.array_equal(found["rho"], targets.voxels[:, 1])
    assert np.array_equal(found["logits"], targets.logits.numpy())
    assert "scan_sha256" in capsys.readouterr().out


def test_a_store_of_one_s_own_logits_trains_a_student(there, tmp_path):
    options = ("grid.shape=[480, 360, 32]", "steps=1", "batch_size=1", 'train=["00"]', "validate_on=[]")
    succeed(train(there / "dataset", there / "cache/mine", tmp_path / "run", *options, name="logit"))
    [line] = read_metrics(tmp_path / "run", "train")
    assert math.isfinite(line["loss"])
    assert line["logit"] > 0


def test_commands_look_after_a_store_of_logits_alone(there, tmp_path):
    for words in (["info"], ["verify", "--data", there / "dataset"]):
        succeed(command(stage_one, *words, "--cache", there / "cache/mine"))
    smaller = ("--set", "encoding.logits=int8_row", "--to", tmp_path / "smaller")
    succeed(command(stage_one, "convert", "--cache", there / "cache/mine", *smaller))
    assert TargetStore.open(tmp_path / "smaller").identity.encoding.logits == "int8_row"


def test_targets_are_refused_for_points_that_are_not_theirs(there):
    store = TargetStore.open("cache/mine")
    points = np.fromfile("dataset/sequences/00/velodyne/000000.bin", np.float32).reshape(-1, 4)
    with pytest.raises(StoreError, match="has changed since"):
        store.read(SCAN, 1, points[:-1])
    targets, _ = store.read(SCAN, 1, points)
    with pytest.raises(StoreError, match=r"of another cloud.*apply_view"):
        logits_of_points(targets, points, store.identity.polar_grid)


def test_a_voxel_gets_the_mean_of_its_points_and_every_point_its_voxel():
    points = np.array([[10, 0, 0, 0], [10, 0.1, 0, 0], [-20, 1, -1, 0]], np.float32)
    logits = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 7.0]])
    targets = targets_of_points(points, logits, GRID)
    assert len(targets.voxels) == 2
    expected = torch.tensor([[2.0, 4.0], [2.0, 4.0], [5.0, 7.0]])
    assert torch.equal(logits_of_points(targets, points, GRID), expected)
    with pytest.raises(StoreError, match="for 3 points"):
        targets_of_points(points, logits[:2], GRID)


def test_a_layer_may_be_called_logits_and_counts_apart_from_them(tmp_path):
    identity = StoreIdentity.of("mine", GRID, load_label_map("semantic_kitti"), {"logits": 2})
    store = TargetStore.create_or_resume(tmp_path / "store", identity)
    layer = PillarFeatures(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 2), GRID.shape[:2])
    targets = targets_of_voxels(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, CLASSES))
    targets = replace(targets, layers={"logits": layer})
    store.write(SCAN, 0, identity.view(SCAN, 0), targets, np.zeros((1, 4), np.float32))
    found = contents(store).arrays
    assert (found["logits"].uncompressed, found["logits.pillar_features"].uncompressed) == (2 * CLASSES, 2 * 2)


def test_voxels_may_come_in_any_order(tmp_path):
    voxels = torch.tensor([[3, 0, 0], [0, 2, 1], [0, 2, 0], [0, 1, 5]])
    logits = torch.arange(80.0).reshape(4, CLASSES)
    identity = StoreIdentity.of("mine", GRID, load_label_map("semantic_kitti"))
    store = TargetStore.create_or_resume(tmp_path / "store", identity)
    store.write(SCAN, 0, identity.view(SCAN, 0), targets_of_voxels(voxels, logits), np.zeros((1, 4), np.float32))
    targets, _ = store.read(SCAN, 0, None)
    assert targets.voxels.tolist() == [[0, 0, 1, 5], [0, 0, 2, 0], [0, 0, 2, 1], [0, 3, 0, 0]]
    assert torch.equal(targets.logits, logits[[3, 2, 1, 0]])
    with pytest.raises(StoreError, match="each voxel needs"):
        targets_of_voxels(voxels, logits[:3])
    with pytest.raises(StoreError, match="names a cell twice"):
        store.write(SCAN, 0, identity.view(SCAN, 0), targets_of_voxels(voxels[[0, 0]], logits[:2]), np.zeros((1, 4)))


@pytest.mark.parametrize(("field", "value"), [("teacher_hash", "x" * 1000), ("layers", {"a/b": 4})])
def test_an_identity_that_no_store_can_have_is_refused(field, value):
    parts = {"teacher_hash": "mine", "grid": GRID, "label_map": load_label_map("semantic_kitti"), field: value}
    with pytest.raises(SettingsError, match=rf"the identity of a store(.|\n)*{field}"):
        StoreIdentity.of(**parts)


def test_another_teacher_does_not_write_into_a_store(tmp_path):
    identity = StoreIdentity.of("mine", GRID, load_label_map("semantic_kitti"))
    store = TargetStore.create_or_resume(tmp_path, identity)
    assert store.identity == identity
    other = StoreIdentity.of("mine, better", GRID, load_label_map("semantic_kitti"), views=ViewSet(count=2))
    with pytest.raises(StoreError, match=r"teacher_hash(.|\n)*views\.count"):
        TargetStore.create_or_resume(tmp_path, other)
