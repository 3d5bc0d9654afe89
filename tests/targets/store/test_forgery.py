"""A store of somebody who means harm: refused with an error that names the file; never a crash, nor other numbers."""

import json
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numcodecs.zstd
import numpy as np
import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.archive import ArchiveStorage
from common.targets.store.chunks import MemberError
from common.targets.store.maintenance import inspect_bytes
from common.targets.store.members import read_members
from stage1_dump_teacher.__main__ import main
from tests.shared.memory_storage import MemoryStorage
from tests.shared.reduced import command, fail, succeed
from tests.targets.store.forgery import (
    members_of,
    places,
    put,
    with_chunk,
    with_identity,
    with_metadata,
    with_numbers,
    zip_of,
)
from tests.targets.store.made_up_targets import SCANS, identity, numbers, points_of, store_files

SCAN = SCANS[0]
NAME = f"sequences/{SCAN.sequence}/{SCAN.frame}.v0.zarr.zip"
PLAIN = store_files("float32", "none")


def stage_one(*words: Any):
    """Run a command of stage one in this process."""
    return command(main, *words)


def store_with(files: dict[str, bytes]) -> TargetStore:
    """A store in memory."""
    storage = MemoryStorage()
    for name, data in files.items():
        storage.write(name, data)
    return TargetStore.open(storage)


def refused(data: bytes, files: dict[str, bytes] = PLAIN) -> str:
    """What `verify` says about a scan file that nobody may read."""
    store = store_with(files | {NAME: data})
    problem = inspect_bytes(store, SCAN, 0, data)
    assert problem is not None
    assert problem.file_is_wrong
    with pytest.raises(StoreError, match=NAME):
        store.verify(SCAN, 0)
    return f"{problem.array} {problem.text}"


# Paths


@pytest.mark.parametrize(
    "member",
    [
        "sequences/../../victim/sequences/00/000000.v0.zarr.zip",
        "sequences/x//../../../../victim.v0.zarr.zip",
        "sequences/00/../000000.v0.zarr.zip",
        "sequences/00/..\\000000.v0.zarr.zip",
        "sequences/00/\x1b[2J.v0.zarr.zip",
        "sequences/000000.v0.zarr.zip",
        "sequences/00/000000.v².zarr.zip",
        "sequences/00/000000.v01.zarr.zip",
        "sequences/00/000000.v.zarr.zip",
    ],
)
def test_an_archive_with_a_name_that_no_store_writes_is_refused(tmp_path, member):
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of({"manifest.json": store_files()["manifest.json"], member: store_files()[NAME]}))
    for words in (("merge", "--from", archive), ("convert", "--cache", archive, "--set", "encoding.codec=lz4")):
        message = fail(stage_one(*words, "--to", tmp_path / "out" / "store"))
        assert "which a store never writes" in message
        assert "\x1b" not in message
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) in (
        ["forged.zip"],
        ["forged.zip", "manifest.json"],
    )
    for words in (("verify",), ("info",)):
        assert "which a store never writes" in fail(stage_one(*words, "--cache", archive))


def test_hidden_files_of_other_systems_are_no_scan_files(tmp_path):
    files = store_files() | {f"sequences/00/._{Path(NAME).name}": b"resource fork"}
    assert store_with(files).finished() == store_with(dict(store_files())).finished()


# Chunks


def blosc_header(chunk: bytes, **fields: int) -> bytes:
    """A chunk with other values in its Blosc header."""
    names = ("version", "format", "flags", "typesize", "decoded", "blocksize", "encoded")
    values = dict(zip(names, struct.unpack("<BBBBiii", chunk[:16]), strict=True)) | fields
    return struct.pack("<BBBBiii", *values.values()) + chunk[16:]


@pytest.mark.parametrize(
    "fields",
    [
        {"decoded": 8},
        {"decoded": 2**31 - 1},
        {"encoded": 2**31 - 1},
        {"encoded": 20},
        {"blocksize": 0},
        {"blocksize": 2**31 - 1},
        {"blocksize": 1},
        {"typesize": 0},
        {"typesize": 3},
        {"flags": 0x62},
        {"version": 1},
    ],
)
def test_a_blosc_header_that_says_something_else_is_refused(fields):
    data = with_chunk(store_files()[NAME], "logits", lambda chunk: blosc_header(chunk, **fields))
    assert "logits" in refused(data, store_files())


def test_twenty_bytes_are_not_decoded_to_an_array():
    for start in (16, 20):
        message = refused(with_chunk(store_files()[NAME], "logits", lambda chunk, n=start: chunk[:n]), store_files())
        assert "logits has a Blosc header that does not fit: encoded bytes" in message


def test_chunks_changed_under_a_valid_checksum_never_crash_the_decoder():
    generator = np.random.default_rng(0)
    for encoding, array in (("float32", "logits"), ("int8_row", "logits"), ("float32", "voxels.16x12x8")):
        for codec in ("zstd", "lz4"):
            data = store_files(encoding, codec)[NAME]
            length = len(next(m for name, m in members_of(data).items() if name.startswith(f"{array}/c/"))) - 4
            cases = [(position, value) for position in range(min(32, length)) for value in (0, 1, 2, 127, 128, 255)]
            cases += [(int(generator.integers(length)), int(generator.integers(256))) for _ in range(150)]
            for position, value in cases:
                changed = with_chunk(
                    data,
                    array,
                    lambda chunk, p=position, v=value: chunk[:p] + bytes([v]) + chunk[p + 1 :],
                )
                members = read_members(changed)
                try:
                    decoded = members.array(array)
                except MemberError:
                    continue
                assert list(decoded.shape) == members.metadata[array]["shape"]


def test_a_zstandard_frame_that_holds_less_than_its_array_is_refused():
    files = store_files("int8_row")
    frame = numcodecs.zstd.compress(b"12345678", 1)
    assert "logits announces 8 bytes instead of 600" in refused(
        with_chunk(files[NAME], "logits", lambda _: frame), files
    )


@pytest.mark.parametrize("shape", [[10**12, 20], [2**31 - 1, 2**31 - 1], [30, 10**9]])
@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_a_shape_beyond_the_chunk_takes_no_memory(shape, codec):
    files = store_files("float32", codec)
    data = with_metadata(
        files[NAME], lambda group: group["consolidated_metadata"]["metadata"]["logits"].update(shape=shape)
    )
    tracemalloc.start()
    assert "logits" in refused(data, files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


# Metadata


def test_no_value_in_the_metadata_of_a_scan_file_makes_a_traceback():
    data = PLAIN[NAME]
    document = json.loads(members_of(data)["zarr.json"])
    expected = numbers(store_with(dict(PLAIN)).read(SCAN, 0, points_of(SCAN), voxel_features=True)[0])
    for path in places(document):
        for value in (..., None, -1, 3, 1e300, "x", "../x", [], [[]], {}, {"name": 3}, True):
            changed = deepcopy(document)
            put(changed, path, value)
            forged = with_metadata(data, lambda group, new=changed: (group.clear(), group.update(new)))
            store = store_with(PLAIN | {NAME: forged})
            inspect_bytes(store, SCAN, 0, forged)
            with suppress(StoreError):
                targets, _ = store.read(SCAN, 0, points_of(SCAN), voxel_features=True)
                assert numbers(targets) == expected, (path, value)


def test_every_bit_of_the_flags_of_a_member_is_noticed_or_harmless():
    data = store_files()[NAME]
    store = store_with(dict(store_files()))
    expected = numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0])
    with zipfile.ZipFile(BytesIO(data)) as archive:
        starts = [info.header_offset + 6 for info in archive.infolist()]
    entry = data.find(b"PK\x01\x02")
    while entry >= 0:
        starts.append(entry + 8)
        entry = data.find(b"PK\x01\x02", entry + 1)
    for start in starts:
        for bit in range(16):
            spoilt = bytearray(data)
            spoilt[start + bit // 8] ^= 1 << bit % 8
            problem = inspect_bytes(store, SCAN, 0, bytes(spoilt))
            assert problem is not None, (start, bit)
            assert problem.kind == "damaged"
            store.storage.write(NAME, bytes(spoilt))
            with suppress(StoreError):
                assert numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0]) == expected


# Manifests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it["views"].update(count=1_000_000), "views.count"),
        (lambda it: it["views"].update(anchors={"flips": ["none"], "rotations": 10**6}), "anchors"),
        (lambda it: it["grid"].update(shape=[10**12, 10**12, 10**12]), "grid"),
        (lambda it: it["grid"].update(shape=[0, 12, 8]), "grid"),
        (lambda it: it["grid"].update(minimum=[1e400, 0.0, 0.0]), "not a manifest|grid"),
        (lambda it: it.update(layers={f"layer{row}": 4 for row in range(100_000)}), "layers"),
        (lambda it: it.update(layers={"../../x": 4}), "layers"),
        (lambda it: it.update(layers={"down1c": -4}), "layers"),
        (lambda it: it.update(layers={"down1c": 10**12}), "layers"),
        (lambda it: it.update(teacher_hash="a" * 1_000_000), "teacher_hash"),
    ],
)
def test_a_manifest_that_asks_for_boundless_work_is_refused(change, words):
    manifest = with_identity(store_files()["manifest.json"], change)
    with pytest.raises(StoreError, match=words) as caught:
        store_with({"manifest.json": manifest})
    assert "manifest.json" in caught.value.message
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 500 + b"]" * 500])
def test_json_that_nests_deeply_is_refused(nested):
    with pytest.raises(StoreError, match=r"manifest\.json: not a manifest of a target store \(nests"):
        store_with({"manifest.json": nested})
    files = members_of(PLAIN[NAME])
    assert "zarr.json is not the metadata" in refused(zip_of(files | {"zarr.json": nested}))


def test_json_beyond_all_measure_is_not_parsed():
    manifest = store_files()["manifest.json"] + b" " * 5_000_000
    with pytest.raises(StoreError, match=r"bytes of JSON; at most"):
        store_with({"manifest.json": manifest})


@pytest.mark.parametrize(("version", "words"), [(3, "Update the program"), (1, "Dump again")])
def test_another_format_says_which_side_is_old(version, words):
    manifest = with_identity(store_files()["manifest.json"], lambda it: it.update(format_version=version))
    with pytest.raises(StoreError, match=rf"format version {version}, this program reads 2\. {words}"):
        store_with({"manifest.json": manifest})


def test_info_prints_no_control_characters_of_a_store(tmp_path):
    values = json.loads(store_files()["manifest.json"])
    values["made"] = "today\x1b]0;owned\x07"
    values["provenance"] = {
        "project": "1\x1b[2J",
        "packages": {"a\x1b[31m": "2\u202e"},
        "merged_from": [{"location": "x\nnothing wrong", "made": "\x9b1m"}],
    }
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of(store_files() | {"manifest.json": json.dumps(values).encode()}))
    output = succeed(stage_one("info", "--cache", archive))
    assert "owned" in output
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "\nnothing wrong" not in output
    json.loads(succeed(stage_one("info", "--cache", archive, "--json")))


@pytest.mark.parametrize("provenance", [{"packages": 3}, {"merged_from": {"a": 1}}, {"git_commit": 5}])
def test_info_names_a_provenance_that_is_none(tmp_path, provenance):
    values = json.loads(store_files()["manifest.json"]) | {"provenance": provenance}
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of(store_files() | {"manifest.json": json.dumps(values).encode()}))
    assert f"provenance.{next(iter(provenance))}" in fail(stage_one("info", "--cache", archive))


def test_an_archive_whose_directory_lies_about_sizes_is_refused_without_taking_memory(tmp_path):
    archive = tmp_path / "forged.zip"
    data = bytearray(zip_of(dict(store_files())))
    entry = int.from_bytes(data[-6:-2], "little")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0xFFFFFFFE, 0xFFFFFFFE)
    archive.write_bytes(data)
    with pytest.raises(StoreError, match="beyond the end"):
        ArchiveStorage(archive).read(next(iter(store_files())))


def test_show_targets_refuses_numbers_that_no_teacher_said(tmp_path):
    archive = tmp_path / "forged.zip"
    forged = with_numbers(PLAIN[NAME], "logits", lambda numbers: numbers * np.float32("nan"))
    archive.write_bytes(zip_of(PLAIN | {NAME: forged}))
    out = tmp_path / "targets.npz"
    words = ("show-targets", "--cache", archive, "--scan", str(SCAN), "--out", out)
    assert "logits holds NaN or infinity" in fail(stage_one(*words))
    assert not out.exists()


def test_info_says_that_files_are_of_another_store(tmp_path):
    archive = tmp_path / "mixed.zip"
    archive.write_bytes(zip_of(PLAIN | {"manifest.json": store_files("float16", "none")["manifest.json"]}))
    said = f"None of {len(PLAIN) - 1} sampled scan files could be read as one of this store: run verify"
    assert said in succeed(stage_one("info", "--cache", archive))


def test_a_member_without_a_name_is_passed_over(tmp_path):
    archive = tmp_path / "forged.zip"
    archive.write_bytes(zip_of({**store_files(), "x": b"", "": b""}))
    assert TargetStore.open(archive).finished() == store_with(dict(store_files())).finished()


# Contents


@pytest.mark.parametrize(
    ("array", "change", "words"),
    [
        ("logits", lambda a: np.where(a == a[3, 3], np.float32("nan"), a), "logits holds NaN or infinity"),
        ("down1c.pillar_features", lambda a: a * np.float32("inf"), "down1c.pillar_features holds NaN or infinity"),
        ("logits", lambda a: a[:, :-1], "logits has 19 channels; the store's identity says 20"),
        ("logits", lambda a: a[:-1], "logits has 29 rows for 30 voxels.16x12x8"),
        ("up0e.pillar_features", lambda a: a[:, 0], "instead of rows and channels"),
        ("pillars.8x6", lambda a: a + np.uint32(4_000_000_000), "has the index 40000000"),
        ("pillars.8x6", lambda a: a[::-1], "is not sorted, or names a cell twice"),
        ("pillars.8x6", lambda a: np.maximum(a, a[1]), "is not sorted, or names a cell twice"),
        ("voxels.16x12x8", lambda a: a.reshape(-1, 1), "instead of a row of uint32"),
    ],
)
def test_contents_that_no_teacher_said_are_found_by_verify(array, change, words):
    data = with_numbers(PLAIN[NAME], array, change)
    assert words in refused(data)
    if "NaN" not in words:
        with pytest.raises(StoreError, match=NAME):
            store_with(PLAIN | {NAME: data}).read(SCAN, 0, None)


def test_a_scale_that_is_not_finite_is_found():
    files = store_files("int8_row", "none")
    data = with_numbers(files[NAME], "logits.row_scale", lambda a: a * np.float16("inf"))
    assert "logits holds NaN or infinity" in refused(data, files)


def test_an_array_that_does_not_belong_into_the_store_is_found():
    def add(group: Any) -> None:
        metadata = group["consolidated_metadata"]["metadata"]
        metadata["further"] = metadata["logits"]

    assert "further does not belong" in refused(with_metadata(PLAIN[NAME], add))


def test_a_resolution_finer_than_the_grid_is_found():
    def change(group: Any) -> None:
        group["attributes"]["features"]["up0e.pillar_features"]["shape"] = [1600, 12]

    assert "has the resolution (1600, 12)" in refused(with_metadata(PLAIN[NAME], change))


def test_the_identity_of_made_up_stores_is_within_all_bounds():
    assert store_with(dict(PLAIN)).identity == identity("float32", "none")
