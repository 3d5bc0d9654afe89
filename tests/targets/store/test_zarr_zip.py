"""Scan files written without zarr: those of zarr-python, byte for byte but for frames that zstd packs faster."""

import io
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore, ZipStore

from common.base.errors import StoreError
from common.targets.store import TargetEncoding
from common.targets.store.zarr_zip import stored_zip, zip_of_group

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "voxels.8x8x4": np.arange(300, dtype=np.uint32) * 3,
    "logits": RANDOM.normal(size=(300, 20)).astype(np.float32),
    "a.pillar_features": RANDOM.normal(size=(5000, 64)).astype(np.float16),
    "a.voxel_features": RANDOM.integers(-9, 9, (5000, 64)).astype(np.int8),
    "a.voxel_features.row_exponent": np.zeros(5000, np.uint8),
    "nothing": np.empty((0, 7), np.float32),
}
ATTRIBUTES = {"scan": "00/000000", "view": {"rotation": 0.1, "flip": True}, "text": "Straße"}


def zarrs_own(arrays: dict[str, np.ndarray], encoding: TargetEncoding) -> bytes:
    """The same file, its members written by zarr."""
    members: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(members), attributes=ATTRIBUTES)
    for name, values in arrays.items():
        chunks = tuple(max(size, 1) for size in values.shape)
        codecs = [*compressors(values, encoding), Crc32cCodec()]
        group.create_array(name, data=values, chunks=chunks, compressors=codecs, config={"write_empty_chunks": True})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(group.store)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name].to_bytes())
    return buffer.getvalue()


def compressors(values: np.ndarray, encoding: TargetEncoding) -> list[BloscCodec | ZstdCodec]:
    if encoding.codec == "none":
        return []
    if encoding.codec == "zstd" and values.dtype.itemsize == 1:
        return [ZstdCodec(level=encoding.level)]
    shuffle = BloscShuffle.shuffle if values.dtype.itemsize > 1 else BloscShuffle.bitshuffle
    return [BloscCodec(cname=encoding.codec, clevel=encoding.level, shuffle=shuffle, typesize=values.dtype.itemsize)]


def test_what_no_zip_can_hold_is_refused():
    part = bytes(2**28)
    with pytest.raises(StoreError, match="no zip file can hold"):
        stored_zip({str(number): part for number in range(16)})


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("level", [1, 5])
@pytest.mark.parametrize("codec", ["lz4", "none"])
def test_files_are_those_that_zarr_writes(codec, level):
    encoding = TargetEncoding(codec=codec, level=level)
    assert zip_of_group(ARRAYS, ATTRIBUTES, encoding) == zarrs_own(ARRAYS, encoding)


@pytest.mark.parametrize("level", [1, 5])
def test_zarr_reads_frames_of_ours_and_they_are_hardly_larger_than_its_own(level, tmp_path):
    encoding = TargetEncoding(codec="zstd", level=level)
    data = zip_of_group(ARRAYS, ATTRIBUTES, encoding)
    ours, zarrs = members_of(data), members_of(zarrs_own(ARRAYS, encoding))
    assert list(ours) == list(zarrs)
    assert {name: ours[name] for name in ours if name.endswith("zarr.json")} == {
        name: zarrs[name] for name in zarrs if name.endswith("zarr.json")
    }
    assert sum(map(len, ours.values())) < 1.01 * sum(map(len, zarrs.values()))
    path = tmp_path / "scan.zarr.zip"
    path.write_bytes(data)
    group = zarr.open_group(ZipStore(path, mode="r"), mode="r")
    for name, values in ARRAYS.items():
        found = group[name][...]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
