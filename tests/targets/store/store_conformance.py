"""What a target store must do on every kind of storage. A test class of a storage subclasses these."""

import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch

from common.base.errors import StoreError
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY
from common.targets.store import TargetStore
from tests.targets.store.conformance import MakeStorage
from tests.targets.store.made_up_targets import (
    CHANNELS,
    SCANS,
    VIEWS,
    all_files,
    fill,
    identity,
    numbers,
    points_of,
    same,
    store_files,
    targets_of,
    write_one,
)

ENCODINGS = [("float32", 0.0), ("float16", 1e-3), ("int8_row", 1e-2), ("int8_channel", 3e-2)]
"""Encodings and the relative errors (Euclidean norm) that they may make."""


class TargetStoreConformance:
    """A target store on a storage; `make_storage` as above."""

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Makes a storage that holds some files."""
        raise NotImplementedError("the class of tests of a storage provides this")

    @pytest.mark.parametrize(("encoding", "tolerance"), ENCODINGS)
    def test_round_trip(self, make_storage, encoding, tolerance):
        store = TargetStore.open(make_storage(store_files(encoding)))
        assert store.identity == identity(encoding)
        for scan in SCANS:
            read, _ = store.read(scan, 1, points_of(scan), voxel_features=True)
            written = targets_of(scan, 1)
            close(read.logits, written.logits, tolerance)
            assert torch.equal(read.voxels, written.voxels)
            for name in CHANNELS:
                assert torch.equal(read.layers[name].pillars, written.layers[name].pillars)
                assert torch.equal(read.voxel_layers[name].voxels, written.voxel_layers[name].voxels)
                close(read.layers[name].features, written.layers[name].features, tolerance)
                close(read.voxel_layers[name].features, written.voxel_layers[name].features, tolerance)

    @pytest.mark.parametrize("codec", ["zstd", "lz4", "none"])
    def test_every_codec_is_exact(self, make_storage, codec):
        store = TargetStore.open(make_storage(store_files("float32", codec)))
        read, _ = store.read(SCANS[0], 0, points_of(SCANS[0]), voxel_features=True)
        assert same(read, targets_of(SCANS[0], 0))

    def test_finished_lists_every_scan_and_view(self, make_storage):
        files = dict(store_files())
        del files[f"sequences/{SCANS[1].sequence}/{SCANS[1].frame}.v1.zarr.zip"]
        files |= {"sequences/00/notes.txt": b"", "sequences/00/000000.v0.zarr.zip.old": b"", "readme": b""}
        store = TargetStore.open(make_storage(files))
        assert store.finished() == {(scan, view) for scan in SCANS for view in range(2)} - {(SCANS[1], 1)}
        assert store.sizes()[(SCANS[0], 0)] == len(files[store.name(SCANS[0], 0)])

    def test_a_missing_scan_is_named(self, make_storage):
        files = dict(store_files())
        del files["sequences/00/000001.v1.zarr.zip"]
        store = TargetStore.open(make_storage(files))
        for read in (lambda: store.read(SCANS[1], 1, None), lambda: store.verify(SCANS[1], 1)):
            with pytest.raises(StoreError, match=re.escape(f"no targets of scan {SCANS[1]}, view 1")):
                read()

    def test_no_store_and_damaged_manifests(self, make_storage):
        with pytest.raises(StoreError, match=r"no target store here \(manifest\.json is missing\)"):
            TargetStore.open(make_storage({}))
        manifest = store_files()["manifest.json"]
        for damaged in (b"", manifest[:-20], manifest.replace(b'"aaaa', b'"baaa'), b"[]", b'{"identity": {}}'):
            with pytest.raises(StoreError, match=r"manifest\.json"):
                TargetStore.open(make_storage({"manifest.json": damaged}))

    def test_every_region_of_a_file_is_guarded(self, make_storage):
        files, scan = dict(store_files()), SCANS[0]
        name = f"sequences/{scan.sequence}/{scan.frame}.v0.zarr.zip"
        intact = files[name]
        for region, position in regions(intact):
            damaged = bytearray(intact)
            damaged[position] ^= 0x40
            store = TargetStore.open(make_storage({**files, name: bytes(damaged)}))
            with pytest.raises(StoreError) as caught:
                store.verify(scan, 0)
            assert f"scan {scan}, view 0 is damaged" in caught.value.message, region
            array = region.partition("/")[0]
            assert array in caught.value.message, region
            assert store.location in caught.value.message
            try:
                read, _ = store.read(scan, 0, points_of(scan), voxel_features=True)
            except StoreError:
                continue
            assert same(read, targets_of(scan, 0)), region

    def test_a_changed_scan_is_noticed(self, make_storage):
        store = TargetStore.open(make_storage(store_files()))
        changed = points_of(SCANS[0])
        changed[3, 2] = np.nextafter(changed[3, 2], np.float32(np.inf))
        with pytest.raises(StoreError, match=f"scan {SCANS[0]} has changed"):
            store.read(SCANS[0], 0, changed)

    def test_files_that_changed_places_are_noticed(self, make_storage):
        files = dict(store_files())
        files["sequences/00/000000.v0.zarr.zip"] = files["sequences/00/000001.v0.zarr.zip"]
        files["sequences/11/000000.v0.zarr.zip"] = files["sequences/11/000000.v1.zarr.zip"]
        store = TargetStore.open(make_storage(files))
        for scan in (SCANS[0], SCANS[2]):
            with pytest.raises(StoreError, match="holds other targets"):
                store.read(scan, 0, None)

    def test_verify_reports_stored_bytes(self, make_storage):
        store = TargetStore.open(make_storage(store_files()))
        sizes = store.verify(SCANS[0], 0)
        assert sizes["logits"] > 0
        assert {"down1c.pillar_features", "up0e.voxel_features", "voxels.16x12x8", "pillars.8x6"} <= sizes.keys()


class WritableTargetStoreConformance(TargetStoreConformance):
    """Writing and resuming a target store on a storage."""

    def test_equal_targets_give_equal_files(self, make_storage):
        storage = make_storage({})
        fill(storage)
        written, expected = all_files(storage), dict(store_files())
        assert written.pop("manifest.json")
        expected.pop("manifest.json")
        assert written == expected

    def test_resume(self, make_storage):
        storage = make_storage({})
        write_one(TargetStore.create_or_resume(storage, identity(), {"by": "first"}), SCANS[0], 1)
        manifest = storage.read("manifest.json")
        resumed = TargetStore.create_or_resume(storage, identity(), {"by": "second"})
        assert resumed.finished() == {(SCANS[0], 1)}
        assert storage.read("manifest.json") == manifest
        write_one(resumed, SCANS[1], 0)
        assert TargetStore.open(storage).finished() == {(SCANS[0], 1), (SCANS[1], 0)}

    def test_another_identity_is_refused_with_its_differences(self, make_storage):
        storage = make_storage(store_files())
        before = all_files(storage)
        with pytest.raises(StoreError) as caught:
            TargetStore.create_or_resume(storage, identity("float16", teacher_hash="b" * 64), {})
        for field in ("teacher_hash", "encoding.logits", "encoding.pillar_features"):
            assert f"  {field}: " in caught.value.message
        assert "grid" not in caught.value.message
        assert all_files(storage) == before

    def test_of_many_that_start_all_get_the_same_store(self, make_storage):
        storage, barrier = make_storage({}), threading.Barrier(6)

        def start(row: int) -> str:
            barrier.wait()
            try:
                return TargetStore.create_or_resume(storage, identity(teacher_hash=f"{row % 2}" * 64), {}).identity.hash
            except StoreError as error:
                return "refused" if "teacher_hash" in error.message else error.message

        with ThreadPoolExecutor(6) as pool:
            outcomes = list(pool.map(start, range(6)))
        won = TargetStore.open(storage).identity.hash
        assert outcomes.count(won) == 3
        assert outcomes.count("refused") == 3

    def test_bad_numbers_are_refused_at_the_door(self, make_storage):
        storage = make_storage({})
        store = TargetStore.create_or_resume(storage, identity(), {})
        targets = targets_of(SCANS[0], 0)
        layer = targets.layers["down1c"]
        for bad in (float("nan"), float("inf"), -float("inf")):
            features = layer.features.clone()
            features[2, 1] = bad
            spoilt = replace(targets, layers={**targets.layers, "down1c": replace(layer, features=features)})
            with pytest.raises(StoreError, match=rf"scan {SCANS[0]}, view 0: down1c\.pillar_features"):
                store.write(SCANS[0], 0, IDENTITY, spoilt, points_of(SCANS[0]))
        assert store.finished() == set()

    def test_rewriting_replaces_a_damaged_file(self, make_storage):
        storage = make_storage(store_files())
        store = TargetStore.open(storage)
        name = store.name(SCANS[0], 0)
        storage.write(name, storage.read(name)[:-100])
        with pytest.raises(StoreError, match="cut off or damaged"):
            store.read(SCANS[0], 0, None)
        write_one(store, SCANS[0], 0)
        assert same(store.read(SCANS[0], 0, points_of(SCANS[0]), voxel_features=True)[0], targets_of(SCANS[0], 0))

    def test_writers_of_different_scans_need_not_talk(self, make_storage):
        storage = make_storage({})
        stores = [TargetStore.create_or_resume(storage, identity(), {}) for _ in range(3)]
        work: list[tuple[TargetStore, ScanId, int]] = [
            (store, scan, view) for view in range(VIEWS.count) for store, scan in zip(stores, SCANS, strict=True)
        ]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda item: write_one(*item), work))
        read = {key: numbers(stores[0].read(*key, None, voxel_features=True)[0]) for key in stores[0].finished()}
        assert read == {(scan, view): numbers(targets_of(scan, view)) for scan in SCANS for view in range(VIEWS.count)}


def close(read: torch.Tensor, written: torch.Tensor, tolerance: float) -> None:
    """Assert a relative error of at most `tolerance`; at 0 every bit must agree."""
    assert read.dtype == torch.float32
    assert read.shape == written.shape
    assert float((read - written).norm()) <= tolerance * float(written.norm())


def regions(data: bytes) -> list[tuple[str, int]]:
    """Every region of a scan file by the name that an error about it must hold, and a byte in it."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        infos = archive.infolist()
    found = []
    for info in infos:
        start = info.header_offset + 30 + len(info.filename)
        end = start + info.file_size
        found += [(info.filename, position) for position in (start, (start + end) // 2, end - 1)]
        # Signature and name in the local header.
        found += [(info.filename, info.header_offset), (info.filename, info.header_offset + 30)]
    return [*found, ("", data.rindex(b"PK\x05\x06"))]
