"""A target store that was damaged, mixed up or edited is refused, naming the file; never read as something else."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.base.errors import StoreError
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.scans.view import View, ViewPolicy
from common.targets.store import TargetStore, ViewSet
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import drop_members, encoding_of, file_of, made_up_identity, made_up_targets, same_targets

SCAN = ScanId("00", "000007")
POINTS = street_scan(50)[0]
TARGETS = made_up_targets()


@pytest.fixture
def store(tmp_path, semantic_kitti) -> TargetStore:
    """A store with one scan in one view."""
    made = TargetStore.create_or_resume(tmp_path / "cache", made_up_identity(semantic_kitti), {})
    made.write(SCAN, 1, View(rotation=10), TARGETS, POINTS)
    return made


def members(path: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def data_start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header, which ends with its name and extra field."""
    header = path.read_bytes()[member.header_offset : member.header_offset + 30]
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def test_a_flipped_bit_in_any_member_is_noticed_by_verify_and_never_read_as_other_numbers(store):
    path = file_of(store, SCAN, 1)
    whole = path.read_bytes()
    for member in members(path):
        for offset in {0, member.file_size // 2, member.file_size - 1}:
            spoilt = bytearray(whole)
            spoilt[data_start(path, member) + offset] ^= 1
            path.write_bytes(spoilt)
            with pytest.raises(StoreError, match="scan 00/000007, view 1 is damaged") as caught:
                store.verify(SCAN, 1)
            assert str(path) in caught.value.message
            # Metadata that stands a second time in the group's own may be spoilt without harm to a reader of that.
            if member.filename == "zarr.json" or not member.filename.endswith("zarr.json"):
                with pytest.raises(StoreError, match="is damaged"):
                    store.read(SCAN, 1, POINTS, voxel_features=True)
            else:
                assert same_targets(store.read(SCAN, 1, POINTS, voxel_features=True)[0], TARGETS)
            path.write_bytes(whole)
    assert same_targets(store.read(SCAN, 1, POINTS, voxel_features=True)[0], TARGETS)


def test_every_missing_chunk_is_noticed_one_that_zarr_would_read_as_zeros_included(store):
    path = file_of(store, SCAN, 1)
    whole = path.read_bytes()
    names = [member.filename for member in members(path) if "/c/" in member.filename]
    assert any(name.endswith("/c/0/0") for name in names)
    for name in [*names, "zarr.json"]:
        drop_members(path, lambda member, name=name: member == name)
        with pytest.raises(StoreError, match=f"is damaged: {name.partition('/')[0]} is missing") as caught:
            store.read(SCAN, 1, POINTS, voxel_features=True)
        assert str(path) in caught.value.message
        path.write_bytes(whole)


def test_a_truncated_file_is_noticed_wherever_it_ends(store):
    path = file_of(store, SCAN, 1)
    whole = path.read_bytes()
    for length in sorted({0, 1, len(whole) - 1, len(whole) - 30, *range(0, len(whole), len(whole) // 23)}):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError) as caught:
            store.read(SCAN, 1, POINTS)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 93])
def test_a_zip_directory_with_a_false_compression_is_noticed(store, method):
    path = file_of(store, SCAN, 1)
    whole = path.read_bytes()
    entry = whole.find(b"PK\x01\x02")
    while entry >= 0:
        spoilt = bytearray(whole)
        spoilt[entry + 10] = method
        path.write_bytes(spoilt)
        with pytest.raises(StoreError):
            store.read(SCAN, 1, POINTS, voxel_features=True)
        entry = whole.find(b"PK\x01\x02", entry + 1)


def test_the_array_that_cannot_be_read_is_named(store):
    drop_members(file_of(store, SCAN, 1), lambda name: name == "up2e.pillar_features/c/0/0")
    with pytest.raises(StoreError, match=r"up2e\.pillar_features is missing"):
        store.read(SCAN, 1, POINTS)


def test_targets_that_are_not_there_are_named(store):
    with pytest.raises(StoreError, match=r"no targets of scan 00/000007, view 0"):
        store.read(SCAN, 0, POINTS)


def test_targets_of_another_scan_under_this_name_are_refused(store):
    other = ScanId("00", "000008")
    file_of(store, SCAN, 1).rename(file_of(store, other, 1))
    with pytest.raises(StoreError, match="scan: the file has '00/000007'"):
        store.read(other, 1, POINTS)


def test_targets_of_another_teacher_are_refused(store, tmp_path, semantic_kitti):
    other = TargetStore.create_or_resume(
        tmp_path / "other", made_up_identity(semantic_kitti, teacher_hash="b" * 64), {}
    )
    file_of(other, SCAN, 1).parent.mkdir(parents=True)
    file_of(other, SCAN, 1).write_bytes(file_of(store, SCAN, 1).read_bytes())
    with pytest.raises(StoreError, match="teacher_hash: the file has 'aaa"):
        other.read(SCAN, 1, POINTS)


def test_a_scan_that_changed_since_is_noticed(store):
    changed = POINTS.copy()
    changed[17, 3] = np.nextafter(changed[17, 3], np.float32(2))
    with pytest.raises(StoreError, match="has changed since"):
        store.read(SCAN, 1, changed)


# The manifest


def test_a_store_is_opened_again_with_the_same_identity(store, semantic_kitti):
    again = TargetStore.create_or_resume(Path(store.location), made_up_identity(semantic_kitti), {"torch": "another"})
    assert again.identity == TargetStore.open(Path(store.location)).identity == store.identity
    assert again.finished() == {(SCAN, 1)}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"teacher_hash": "b" * 64}, ["teacher_hash"]),
        (
            {"grid": PolarGrid.named("cylinder3d", (48, 40, 32))},
            ["grid.shape", "grid.minimum", "grid.maximum"],
        ),
        (
            {"encoding": encoding_of("float16", codec="lz4")},
            ["encoding.pillar_features", "encoding.voxel_features", "encoding.logits", "encoding.codec"],
        ),
        ({"voxel_features": False, "layers": {"down1c": 16}}, ["voxel_features", "layers.up2e", "layers.up0e"]),
        (
            {"views": ViewSet(count=3, policy=ViewPolicy(rotate=False, seed=1))},
            ["views.count", "views.policy.rotate", "views.policy.seed"],
        ),
    ],
)
def test_another_identity_is_refused_listing_each_field_that_differs(store, semantic_kitti, changes, fields):
    with pytest.raises(StoreError, match="nothing was written") as caught:
        TargetStore.create_or_resume(Path(store.location), made_up_identity(semantic_kitti, **changes), {})
    named = [line.strip().partition(":")[0] for line in caught.value.message.splitlines() if line.startswith("  ")]
    assert sorted(named) == sorted(fields)


def test_another_learning_map_is_refused(store, semantic_kitti):
    other = semantic_kitti.model_copy(update={"learning_map": semantic_kitti.learning_map | {13: 4}})
    with pytest.raises(StoreError, match=r"learning_map\.13: the store has 5, this run has 4"):
        TargetStore.create_or_resume(Path(store.location), made_up_identity(other), {})


def edit(store: TargetStore, change: Callable[[dict], None]) -> None:
    path = Path(store.location) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["identity"].update(teacher_hash="c" * 64), "changed after"),
        (lambda manifest: manifest["identity"]["grid"].update(shape=[48, 40, 8]), "changed after"),
        (lambda manifest: manifest.update(identity_hash="0" * 64), "changed after"),
        (lambda manifest: manifest["identity"].update(format_version=3), "format version 3"),
        (lambda manifest: manifest["identity"].update(format_version=3, novelty=True), "format version 3"),
        (lambda manifest: manifest["identity"].update(novelty=True), "novelty: unknown key"),
        (lambda manifest: manifest["identity"].pop("grid"), "grid"),
        (lambda manifest: manifest.pop("identity"), "not a manifest"),
        (lambda manifest: manifest.pop("identity_hash"), "not a manifest"),
    ],
)
def test_an_edited_manifest_is_refused(store, change, message):
    edit(store, change)
    with pytest.raises(StoreError, match=message) as caught:
        TargetStore.open(Path(store.location))
    assert "manifest.json" in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', '{"identity": 3}'])
def test_a_damaged_manifest_is_refused(store, content):
    (Path(store.location) / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json: not a manifest"):
        TargetStore.open(Path(store.location))


def test_a_folder_without_a_manifest_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        TargetStore.open(tmp_path)
