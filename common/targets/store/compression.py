"""Compressing the one chunk of an array, in the formats of Zarr's codecs `zstd` and `blosc`."""

import struct
from typing import Any

import google_crc32c
import numcodecs
import numcodecs.blosc
import numpy as np
from backports import zstd

from common.base.errors import StoreError
from common.targets.store.chunks import BLOSC_HEADER, BLOSC_VERSION, CHECKSUM_BYTES
from common.targets.store.identity import TargetEncoding

LARGEST_CHUNK = 2**31 - 2**10

BLOCK_BYTES = 2**20
"""Of a Blosc block: smaller ones take more time, larger ones make the file no smaller."""

MANY_STEPS = 16
"""Of a channel's deviation: then single bytes are hardly ever followed by the same ones as before."""

HARDLY_SEARCHED: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.strategy: zstd.Strategy.fast,
    zstd.CompressionParameter.hash_log: 6,
    zstd.CompressionParameter.chain_log: 6,
    zstd.CompressionParameter.min_match: 7,
}
"""At level 1 a third of the time goes into looking for repetitions; fine features are 5 % larger without most of it."""

BLOSC_SHUFFLED, BLOSC_WHOLE_BLOCKS, BLOSC_ZSTD = 0x01, 0x10, 4 << 5

# Blosc's own threads write blocks in the order in which they end: equal arrays would not give equal bytes.
numcodecs.blosc.use_threads = False


def compressors(itemsize: int, encoding: TargetEncoding) -> list[dict[str, Any]]:
    """Codecs of one array: the bytes of wider numbers are shuffled first, single bytes need no shuffling."""
    if encoding.codec == "none":
        return []
    if encoding.codec == "zstd" and itemsize == 1:
        return [{"name": "zstd", "configuration": {"level": encoding.level, "checksum": False}}]
    blosc = {
        "typesize": itemsize,
        "cname": encoding.codec,
        "clevel": encoding.level,
        "shuffle": "shuffle" if itemsize > 1 else "bitshuffle",
        "blocksize": 0,
    }
    return [{"name": "blosc", "configuration": blosc}]


def chunk_bytes(values: np.ndarray, encoding: TargetEncoding) -> bytes:
    """The one chunk of an array: little-endian bytes, compressed, with their checksum.

    Raises:
        StoreError: the codecs cannot count so many bytes.
    """
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if values.nbytes > LARGEST_CHUNK:
        raise StoreError(f"an array of {values.nbytes:,} bytes is larger than a chunk can be; keep less of a scan")
    if encoding.codec == "none":
        parts = [values.tobytes()]
    elif encoding.codec == "zstd" and values.dtype.itemsize == 1:
        parts = [zstd_frame(values, encoding)]
    elif encoding.codec == "zstd" and values.dtype.kind == "f":
        parts = blosc_of_frames(values, encoding)
    else:
        shuffle = numcodecs.Blosc.SHUFFLE if values.dtype.itemsize > 1 else numcodecs.Blosc.BITSHUFFLE
        parts = [numcodecs.blosc.compress(values, encoding.codec.encode(), encoding.level, shuffle)]
    checksum = 0
    for part in parts:
        checksum = google_crc32c.extend(checksum, part)
    return b"".join([*parts, checksum.to_bytes(CHECKSUM_BYTES, "little")])


def zstd_frame(values: np.ndarray, encoding: TargetEncoding) -> bytes:
    """The bytes of a contiguous array as one Zstandard frame, which says how many they are."""
    if encoding.level > 1 or (values.dtype == np.int8 and encoding.fewest_steps < MANY_STEPS):
        return zstd.compress(values.data, encoding.level)
    return zstd.compress(values.data, options=HARDLY_SEARCHED)


def blosc_of_frames(values: np.ndarray, encoding: TargetEncoding) -> list[bytes]:
    """A contiguous array as a Blosc container of shuffled blocks, each one Zstandard frame; in parts to be joined.

    Blosc's own would be larger by a tenth for twice the time: at low levels it packs each byte of the numbers in a
    frame of its own, in small blocks. The layout is that of c-blosc's README_CHUNK_FORMAT.rst: a header, where each
    block starts, and the blocks, each after its length; one that does not get smaller is kept as it is.
    """
    flat, itemsize = values.reshape(-1), values.dtype.itemsize
    numbers = BLOCK_BYTES // itemsize
    blocks = [packed_block(flat[start : start + numbers], encoding) for start in range(0, len(flat), numbers)]
    starts = BLOSC_HEADER.size + 4 * len(blocks) + np.cumsum([0, *(4 + len(block) for block in blocks)])
    flags = BLOSC_SHUFFLED | BLOSC_WHOLE_BLOCKS | BLOSC_ZSTD
    block_bytes = min(BLOCK_BYTES, values.nbytes)
    header = BLOSC_HEADER.pack(BLOSC_VERSION, 1, flags, itemsize, values.nbytes, block_bytes, int(starts[-1]))
    parts = [header, starts[:-1].astype("<i4").tobytes()]
    for block in blocks:
        parts += [struct.pack("<i", len(block)), block]
    return parts


def packed_block(numbers: np.ndarray, encoding: TargetEncoding) -> bytes:
    """One block of a Blosc container: a frame of its shuffled bytes, or these themselves if that is no longer."""
    block = shuffled(numbers)
    frame = zstd_frame(block, encoding)
    return frame if len(frame) < block.nbytes else block.tobytes()


def shuffled(numbers: np.ndarray) -> np.ndarray:
    """First bytes of all numbers, then all second ones, and so on: uint8 [itemsize, N]."""
    by_number, itemsize = numbers.view(np.uint8), numbers.dtype.itemsize
    by_byte = np.empty((itemsize, len(numbers)), np.uint8)
    for place in range(itemsize):
        by_byte[place] = by_number[place::itemsize]
    return by_byte
