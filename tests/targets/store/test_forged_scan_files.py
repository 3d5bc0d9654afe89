"""A scan file of somebody who means harm: refused by name; never a crash, nor other numbers."""

import json
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from io import BytesIO
from typing import Any

import numcodecs.zstd
import numpy as np
import pytest

from common.base.errors import StoreError
from common.targets.store.chunks import MemberError
from common.targets.store.maintenance import inspect_bytes
from common.targets.store.members import read_members
from tests.targets.store.forged_stores import NAME, PLAIN, SCAN, refused, store_with
from tests.targets.store.forgery import members_of, places, put, with_chunk, with_metadata, with_numbers, zip_of
from tests.targets.store.made_up_targets import identity, numbers, points_of, store_files

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
    members, store = members_of(PLAIN[NAME]), store_with(dict(PLAIN))
    expected = numbers(store.read(SCAN, 0, points_of(SCAN), voxel_features=True)[0])
    for path in places(json.loads(members["zarr.json"])):
        for value in (..., None, -1, 3, 1e300, "x", "../x", [], [[]], {}, {"name": 3}, True):
            changed = json.loads(members["zarr.json"])
            put(changed, path, value)
            forged = zip_of(members | {"zarr.json": json.dumps(changed).encode()})
            store.storage.write(NAME, forged)
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
