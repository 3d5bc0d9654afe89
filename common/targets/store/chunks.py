"""Decoding the one chunk of an array: what a header says is held against the bytes that are there before it is used.

The codecs trust their headers: a chunk that claims to be longer than it is would be decoded from foreign memory, and
one that claims to hold less than its array would leave the rest of it unwritten.
"""

import math
import struct
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np

CHECKSUM_BYTES = 4
LONGEST_AXIS = 2**31 - 1
DTYPES = {"float32", "float16", "uint32", "uint8", "int8"}
COMPRESSORS = {"zstd", "blosc"}

FREE_BYTES, LARGEST_RATIO = 64_000_000, 256
"""An array may have this many bytes, or so many times those of its chunk; real targets shrink to a tenth."""

BLOSC_HEADER = struct.Struct("<BBBBiii")
BLOSC_VERSION = 2
BLOSC_COPIED = 0x02
BLOSC_FORMATS = {1: "lz4", 4: "zstd"}
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class MemberError(Exception):
    """An array of a scan file, or the file itself, is damaged or missing.

    Attributes:
        array: which one.
        problem: what is the case.
    """

    def __init__(self, array: str, problem: str) -> None:
        super().__init__(f"{array} {problem}")
        self.array = array
        self.problem = problem


def check_metadata(name: str, metadata: Any) -> None:
    """Refuse metadata of an array that scan files do not have.

    Raises:
        MemberError: names the field.
    """
    if not isinstance(metadata, dict):
        raise MemberError(name, "has no metadata")
    shape, dtype, codecs = metadata.get("shape"), metadata.get("data_type"), metadata.get("codecs")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 2
        or not all(type(size) is int and 0 <= size <= LONGEST_AXIS for size in shape)
    ):
        raise MemberError(name, f"has the shape {shape!r:.80}; scan files have arrays of one or two dimensions")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MemberError(name, f"has the unknown dtype {dtype!r:.80}")
    listed = codecs if isinstance(codecs, list) else []
    names = [codec.get("name") if isinstance(codec, dict) else None for codec in listed]
    if names not in (["bytes", "crc32c"], *(["bytes", compressor, "crc32c"] for compressor in sorted(COMPRESSORS))):
        raise MemberError(name, f"uses the codecs {codecs!r:.200}, which scan files do not")
    order = listed[0].get("configuration", {})
    if not isinstance(order, dict) or order.get("endian", "little") != "little":
        raise MemberError(name, "is not stored in little-endian order")


def decode_chunk(chunk: memoryview, metadata: dict[str, Any], name: str) -> np.ndarray:
    """The array of a chunk; `metadata` has passed `check_metadata`.

    Raises:
        MemberError: the checksum does not match, or the chunk does not hold exactly the array that `metadata` says.
    """
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    data, size = without_checksum(chunk, name), math.prod(metadata["shape"]) * dtype.itemsize
    kind = metadata["codecs"][1]["name"]
    if size > max(FREE_BYTES, LARGEST_RATIO * len(data)):
        raise MemberError(name, f"would have {size} bytes, which a chunk of {len(data)} bytes cannot hold")
    if kind not in COMPRESSORS:
        if len(data) != size:
            raise MemberError(name, f"has {len(data)} bytes instead of {size}")
        return np.frombuffer(data, dtype).reshape(metadata["shape"]).copy()
    if not size:
        raise MemberError(name, "has a chunk, but no numbers")
    if kind == "blosc":
        check_blosc(data, size, dtype.itemsize, name)
    else:
        check_zstd(data, size, name)
    out = np.empty(metadata["shape"], dtype)
    try:
        (numcodecs.blosc if kind == "blosc" else numcodecs.zstd).decompress(data, out)
    except (RuntimeError, ValueError) as error:
        raise MemberError(name, f"does not decode ({error})") from error
    return out


def without_checksum(chunk: memoryview, name: str) -> memoryview:
    """The chunk without its crc32c.

    Raises:
        MemberError: it does not match.
    """
    if len(chunk) < CHECKSUM_BYTES:
        raise MemberError(name, "is cut off")
    body, checksum = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
    # The checksum's extension takes no memoryview, but an array over the same memory: nothing is copied.
    if google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(checksum, "little"):
        raise MemberError(name, "does not match its checksum")
    return body


def check_blosc(data: memoryview, size: int, itemsize: int, name: str) -> None:
    """Hold a Blosc header, and the places of its blocks, against the chunk and the array.

    Args:
        data: the chunk without its checksum.
        size: bytes of the array.
        itemsize: bytes of one number.
        name: of the array, for errors.

    Raises:
        MemberError: they do not fit.
    """
    if len(data) < BLOSC_HEADER.size:
        raise MemberError(name, "is cut off")
    version, _, flags, typesize, decoded, blocksize, encoded = BLOSC_HEADER.unpack_from(data)
    found = {"decoded bytes": decoded, "encoded bytes": encoded, "bytes of a number": typesize, "version": version}
    real = {"decoded bytes": size, "encoded bytes": len(data), "bytes of a number": itemsize, "version": BLOSC_VERSION}
    wrong = [f"{field} {found[field]} instead of {real[field]}" for field in found if found[field] != real[field]]
    if flags >> 5 not in BLOSC_FORMATS:
        wrong.append(f"compressor {flags >> 5}, which scan files do not use")
    if not 0 < blocksize <= size:
        wrong.append(f"blocks of {blocksize} bytes")
    if wrong:
        raise MemberError(name, f"has a Blosc header that does not fit: {', '.join(wrong)}")
    if flags & BLOSC_COPIED:
        fits = len(data) == BLOSC_HEADER.size + size
    else:
        table = BLOSC_HEADER.size + 4 * -(-size // blocksize)
        starts = np.frombuffer(data[BLOSC_HEADER.size : table], "<i4") if table <= len(data) else np.array([-1])
        fits = bool((starts >= table).all() and (starts <= len(data) - 4).all())
    if not fits:
        raise MemberError(name, "has blocks that are not within its chunk")


def check_zstd(data: memoryview, size: int, name: str) -> None:
    """Hold the size that a Zstandard frame announces against the array's, see `check_blosc`.

    Raises:
        MemberError: it is another one, or none.
    """
    if len(data) < 6 or data[:4] != ZSTD_MAGIC:
        raise MemberError(name, "is not a Zstandard frame")
    descriptor = data[4]
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    length = (int(single), 2, 4, 8)[size_flag]
    announced = int.from_bytes(data[start : start + length], "little") + (256 if size_flag == 1 else 0)
    if announced != size:
        raise MemberError(name, f"announces {announced} bytes instead of {size}")
