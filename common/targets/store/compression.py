"""Compressing the one chunk of an array, in the formats of Zarr's codecs `zstd` and `blosc`.

Features hold hardly anything twice: what makes them smaller is how often each byte occurs, not looking for repetitions.
At level 1 zstd spends half of its time on looking, so it is told to look in one small table only; the frames are as
small, and any decoder reads them. Blosc cannot be told, so its container is written here, around such frames.
"""

import struct
from typing import Any

import google_crc32c
import numcodecs
import numcodecs.blosc
import numpy as np
from backports import zstd

from common.targets.store.chunks import BLOSC_HEADER, BLOSC_VERSION, CHECKSUM_BYTES
from common.targets.store.identity import TargetEncoding

FASTEST = 1
"""Level from which on repetitions are not worth the search; further levels search as they promise."""

HARDLY_SEARCHED: dict[int, int] = {
    zstd.CompressionParameter.strategy: zstd.Strategy.fast,
    zstd.CompressionParameter.hash_log: 6,
    zstd.CompressionParameter.chain_log: 6,
    zstd.CompressionParameter.min_match: 7,
}

BLOCK_BYTES = 2**18
"""Of a Blosc block: its bytes stay in a core's cache while they are shuffled and compressed."""

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
    """The one chunk of an array: little-endian bytes, compressed, with their checksum."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if encoding.codec == "none":
        data = values.tobytes()
    elif encoding.codec == "zstd" and values.dtype.itemsize == 1:
        data = zstd_frame(values, encoding.level)
    elif encoding.codec == "zstd" and values.dtype.kind == "f":
        data = blosc_of_frames(values, encoding.level)
    else:
        shuffle = numcodecs.Blosc.SHUFFLE if values.dtype.itemsize > 1 else numcodecs.Blosc.BITSHUFFLE
        data = numcodecs.blosc.compress(values, encoding.codec.encode(), encoding.level, shuffle)
    return data + google_crc32c.value(data).to_bytes(CHECKSUM_BYTES, "little")


def zstd_frame(values: np.ndarray, level: int) -> bytes:
    """The bytes of a contiguous array as one Zstandard frame that says how many they are."""
    searched = HARDLY_SEARCHED if level <= FASTEST else {}
    return zstd.compress(values.data, options={int(zstd.CompressionParameter.compression_level): level, **searched})


def blosc_of_frames(values: np.ndarray, level: int) -> bytes:
    """An array as a Blosc 1 container of shuffled blocks, each one Zstandard frame.

    The layout is that of c-blosc's README_CHUNK_FORMAT.rst: a header, where each block starts, and the blocks, each
    after its length; one that does not get smaller is kept as it is.
    """
    flat, itemsize = values.reshape(-1), values.dtype.itemsize
    numbers = BLOCK_BYTES // itemsize
    packed = [packed_block(flat[start : start + numbers], level) for start in range(0, len(flat), numbers)]
    ends = BLOSC_HEADER.size + 4 * len(packed) + np.cumsum([0, *(4 + len(block) for block in packed)])
    flags = BLOSC_SHUFFLED | BLOSC_WHOLE_BLOCKS | BLOSC_ZSTD
    block_bytes = min(BLOCK_BYTES, values.nbytes)
    header = BLOSC_HEADER.pack(BLOSC_VERSION, 1, flags, itemsize, values.nbytes, block_bytes, int(ends[-1]))
    body = b"".join(struct.pack("<i", len(block)) + block for block in packed)
    return header + ends[:-1].astype("<i4").tobytes() + body


def packed_block(numbers: np.ndarray, level: int) -> bytes:
    """One block of a Blosc container: a frame of its shuffled bytes, or these themselves if that is no longer."""
    block = shuffled(numbers)
    frame = zstd_frame(block, level)
    return frame if len(frame) < block.nbytes else block.tobytes()


def shuffled(numbers: np.ndarray) -> np.ndarray:
    """First bytes of all numbers, then all second ones, and so on: uint8 [itemsize, N]."""
    by_number = numbers.view(np.uint8)
    itemsize = numbers.dtype.itemsize
    by_byte = np.empty((itemsize, len(numbers)), np.uint8)
    for place in range(itemsize):
        by_byte[place] = by_number[place::itemsize]
    return by_byte
