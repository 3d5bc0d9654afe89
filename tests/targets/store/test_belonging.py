"""What is written into a store, and what is found in one, is held against the store's identity."""

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.base.errors import StoreError
from common.scans.polar_grid import PolarGrid
from common.scans.view import IDENTITY, View, ViewPolicy
from common.targets.store import StoreIdentity, TargetStore, ViewSet
from common.targets.store.maintenance import inspect
from common.targets.store.manifest import MANIFEST, SIGNED
from common.targets.store.storage import FolderStorage
from common.targets.teacher_targets import TeacherTargets
from stage1_dump_teacher.__main__ import main
from tests.shared.memory_storage import MemoryStorage
from tests.shared.reduced import command, fail, succeed
from tests.targets.store.forgery import members_of, with_metadata
from tests.targets.store.made_up_targets import (
    CHANNELS,
    GRID,
    SCANS,
    fill,
    identity,
    label_map,
    numbers,
    points_of,
    store_files,
    targets_of,
    write_one,
)

SCAN = SCANS[0]
TARGETS = targets_of(SCAN, 0)
NAME = f"sequences/{SCAN.sequence}/{SCAN.frame}.v0.zarr.zip"


def stage_one(*words: Any):
    """Run a command of stage one in this process."""
    return command(main, *words)


def store_of(made_of: StoreIdentity) -> TargetStore:
    """An empty store in memory."""
    return TargetStore.create_or_resume(MemoryStorage(), made_of, {})


def without_identity(data: bytes) -> bytes:
    """A scan file as it was written before scan files had the hash of their store's identity."""
    return with_metadata(data, lambda group: group["attributes"].pop("identity_hash"))


def of_an_earlier_version(store: TargetStore) -> TargetStore:
    """The store as it was made before its manifest said that scan files have the hash."""
    manifest = json.loads(store.storage.read(MANIFEST))
    store.storage.write(MANIFEST, json.dumps({name: manifest[name] for name in manifest if name != SIGNED}).encode())
    return TargetStore.open(store.storage)


# Files of other stores


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": PolarGrid.named("cylinder3d", GRID.shape)},
        {"views": ViewSet(count=2, policy=ViewPolicy(seed=1))},
        {"label_map": label_map().model_copy(update={"learning_map": label_map().learning_map | {13: 4}})},
    ],
)
def test_a_file_of_another_store_is_foreign_however_alike_the_stores_are(changes):
    other, store = store_of(identity(**changes)), store_of(identity())
    write_one(other, SCAN, 0)
    store.storage.write(NAME, other.storage.read(NAME))
    problem = inspect(store, SCAN, 0)
    assert problem is not None
    assert problem.kind == "foreign"
    assert problem.text.startswith("is of another store: it has identity_hash ")
    for use in (lambda: store.read(SCAN, 0, None), lambda: store.verify(SCAN, 0)):
        with pytest.raises(StoreError, match=r"holds other targets\.\n  identity_hash: the file has"):
            use()


def test_files_from_before_they_had_the_hash_are_read_and_verified_with_a_note(tmp_path):
    store = of_an_earlier_version(fill(FolderStorage(tmp_path / "store")))
    before = numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0])
    store.storage.write(NAME, without_identity(store.storage.read(NAME)))
    assert numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0]) == before
    store.verify(SCAN, 0)
    output = succeed(stage_one("verify", "--cache", tmp_path / "store"))
    assert "1 scan file of an earlier version without the hash of the store's identity" in output
    assert "nothing wrong" in output
    for words in (("merge", "--from"), ("convert", "--set", "encoding.logits=float16", "--cache")):
        succeed(stage_one(*words, tmp_path / "store", "--to", tmp_path / words[0]))
        copied = (tmp_path / words[0] / NAME).read_bytes()
        assert b"identity_hash" not in members_of(copied)["zarr.json"]
        assert "nothing wrong" in succeed(stage_one("verify", "--cache", tmp_path / words[0]))


def test_a_file_without_the_hash_is_foreign_to_a_store_whose_files_have_it(tmp_path):
    store = fill(FolderStorage(tmp_path / "store"))
    store.storage.write(NAME, without_identity(store.storage.read(NAME)))
    problem = inspect(store, SCAN, 0)
    assert problem is not None
    assert (problem.kind, problem.text) == ("foreign", "is of another store: it has identity_hash None")
    for use in (lambda: store.read(SCAN, 0, None), lambda: store.verify(SCAN, 0)):
        with pytest.raises(StoreError, match=r"holds other targets\.\n  identity_hash: the file has None"):
            use()
    assert "1 problem" in fail(stage_one("verify", "--cache", tmp_path / "store"))


def test_files_without_the_hash_are_not_copied_into_a_store_whose_files_have_it(tmp_path):
    older = of_an_earlier_version(fill(FolderStorage(tmp_path / "older")))
    older.storage.write(NAME, without_identity(older.storage.read(NAME)))
    for words in (("merge", "--from"), ("convert", "--cache")):
        target = TargetStore.create_or_resume(tmp_path / words[0], identity(), {})
        message = fail(stage_one(*words, tmp_path / "older", "--to", tmp_path / words[0]))
        assert f"{tmp_path / 'older'}: is of an earlier version" in message
        assert "Copy into a new store, or dump again." in message
        assert (SCAN, 0) not in target.finished()


def test_a_manifest_that_does_not_say_whether_files_have_the_hash_is_refused():
    store = fill(MemoryStorage())
    for value in ("no", None, 0, []):
        manifest = json.loads(store.storage.read(MANIFEST)) | {SIGNED: value}
        store.storage.write(MANIFEST, json.dumps(manifest).encode())
        with pytest.raises(StoreError, match=f"{SIGNED} is neither true nor false"):
            TargetStore.open(store.storage)


def test_converted_files_belong_to_the_new_store(tmp_path):
    fill(FolderStorage(tmp_path / "store"))
    succeed(stage_one("convert", "--cache", tmp_path / "store", "--to", tmp_path / "new", "--layers", "up0e"))
    output = succeed(stage_one("verify", "--cache", tmp_path / "new"))
    assert "nothing wrong" in output
    assert "note" not in output


def test_an_experiment_with_another_learning_map_is_refused():
    store = store_of(identity())
    store.check_fits(GRID, label_map(), CHANNELS)
    other = label_map().model_copy(update={"learning_map": label_map().learning_map | {13: 4}})
    with pytest.raises(StoreError, match=r"learning_map\.13: the store has 5, this run has 4"):
        store.check_fits(GRID, other, CHANNELS)


# Writing


def pillars(name: str, change: Callable[[torch.Tensor], torch.Tensor], field: str = "features") -> TeacherTargets:
    """Targets with other features, or coordinates, of one layer's pillars."""
    layer = TARGETS.layers[name]
    changed = replace(layer, **{field: change(getattr(layer, field))})
    return replace(TARGETS, layers=TARGETS.layers | {name: changed})


def reordered(rows: torch.Tensor) -> torch.Tensor:
    """The rows from the last to the first."""
    return rows.flip(0)


REFUSED: dict[str, tuple[TeacherTargets, str]] = {
    "fewer channels": (pillars("down1c", lambda rows: rows[:, :-1]), "down1c.pillar_features has 3 channels"),
    "a row too few": (pillars("down1c", lambda rows: rows[:-1]), "down1c.pillar_features has .* rows for"),
    "no channels": (pillars("down1c", lambda rows: rows[:, 0]), "down1c.pillar_features: has the shape"),
    "infinite": (pillars("down1c", lambda rows: rows / 0.0), "down1c.pillar_features: .* NaN or infinity"),
    "unsorted pillars": (pillars("down1c", reordered, "pillars"), "pillars.8x6 is not sorted"),
    "repeated pillars": (pillars("down1c", lambda rows: rows[[0, *range(len(rows) - 1)]], "pillars"), "names a cell"),
    "beyond the grid": (pillars("down1c", lambda rows: rows + torch.tensor([0, 8, 0]), "pillars"), "beyond the grid"),
    "negative bins": (pillars("down1c", lambda rows: rows - torch.tensor([0, 8, 0]), "pillars"), "beyond the grid"),
    "of another scan": (pillars("down1c", lambda rows: rows + torch.tensor([1, 0, 0]), "pillars"), "rows of scan 0"),
    "bins of voxels": (pillars("down1c", lambda rows: rows[:, [0, 1, 2, 2]], "pillars"), "rows of scan 0"),
    "another resolution": (
        replace(TARGETS, layers=TARGETS.layers | {"down1c": replace(TARGETS.layers["down1c"], shape=(800, 6))}),
        "resolution",
    ),
    "a layer is missing": (
        replace(TARGETS, layers={"up0e": TARGETS.layers["up0e"]}),
        "down1c.pillar_features is not in the file",
    ),
    "voxel features are missing": (replace(TARGETS, voxel_layers={}), "down1c.voxel_features is not in the file"),
    "a layer too many": (replace(TARGETS, layers=TARGETS.layers | {"up4e": TARGETS.layers["up0e"]}), "up4e"),
    "fewer classes": (replace(TARGETS, logits=TARGETS.logits[:, :-1]), "logits has 19 channels"),
}


@pytest.mark.parametrize(("targets", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_targets_that_are_not_what_the_identity_promises_are_not_written(targets, words):
    store = store_of(identity())
    with pytest.raises(StoreError, match=f"scan {SCAN}, view 0: .*{words}"):
        store.write(SCAN, 0, IDENTITY, targets, points_of(SCAN))
    assert store.finished() == set()


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_a_view_beyond_the_set_is_not_written(index):
    store = store_of(identity())
    with pytest.raises(StoreError, match=f"there is no view {index} among the 2"):
        store.write(SCAN, index, IDENTITY, TARGETS, points_of(SCAN))


def test_a_view_that_is_not_finite_is_not_written():
    store = store_of(identity())
    with pytest.raises(StoreError, match=f"scan {SCAN}, view 1"):
        # A view is checked where it is made; this one went around the check.
        store.write(SCAN, 1, View.model_construct(rotation=float("nan")), TARGETS, points_of(SCAN))
    assert store.finished() == set()


def test_a_layer_that_the_store_does_not_keep_cannot_be_asked_for():
    store = store_of(identity())
    write_one(store, SCAN, 0)
    with pytest.raises(StoreError, match=r"keeps the layers \['down1c', 'up0e'\]"):
        store.read(SCAN, 0, None, layers=["up9e"])


# Archives that cannot be written


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_archive_that_cannot_be_written_is_named(tmp_path):
    fill(FolderStorage(tmp_path / "store"))
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "folder.zip", tmp_path / "file" / "all.zip", Path("/proc/all.zip")):
        message = fail(stage_one("merge", "--from", tmp_path / "store", "--archive", target))
        assert str(target) in message
    with small_disk(20_000):
        message = fail(stage_one("merge", "--from", tmp_path / "store", "--archive", tmp_path / "all.zip"))
    assert "all.zip: cannot be written (File too large)" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.zip", "store"]
    assert (tmp_path / "file").read_text() == "kept"


def test_every_file_of_a_made_up_store_says_what_it_was_written_for():
    for name, data in store_files().items():
        if name != "manifest.json":
            assert identity().hash.encode() in members_of(data)["zarr.json"]
