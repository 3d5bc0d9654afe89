"""Reading Zarr v3 groups in zip files straight from their bytes: the same standard files, without zarr's machinery.

zarr opens such a file in several passes through its asynchronous stores, which takes longer than decoding the data.
Here the bytes of a file are parsed once and each array decoded once into its own memory. Every byte that is used is
covered by a checksum that is verified: metadata by the zip directory's CRC-32, chunks by Zarr's crc32c codec.
"""

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np

LOCAL_HEADER_BYTES = 30
CHECKSUM_BYTES = 4
DTYPES = {"float32", "float16", "uint32", "uint8", "int8"}


class MemberError(Exception):
    """An array of a scan file, or the file itself, is damaged or missing.

    Attributes:
        array: which one.
    """

    def __init__(self, array: str, problem: str) -> None:
        super().__init__(f"{array} {problem}")
        self.array = array


@dataclass(frozen=True)
class GroupMembers:
    """A parsed file.

    Attributes:
        data: its bytes.
        places: (start, end) of each zip member.
        checksums: CRC-32 of each zip member.
        attributes: of the group.
        metadata: of each array.
    """

    data: memoryview
    places: dict[str, tuple[int, int]]
    checksums: dict[str, int]
    attributes: dict[str, Any]
    metadata: dict[str, Any]

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of each array in the file, without metadata."""
        sizes = {}
        for name, metadata in self.metadata.items():
            start, end = self.places.get(chunk_name(name, metadata), (0, 0))
            sizes[name] = end - start
        return sizes

    def check_all(self) -> None:
        """Verify every byte that any reader may look at: each member's CRC-32, and each array's own checksum.

        Raises:
            MemberError: one does not match.
        """
        for name in self.metadata:
            self.array(name)
        for member, (start, end) in self.places.items():
            if zlib.crc32(self.data[start:end]) != self.checksums[member]:
                raise MemberError(member, "does not match its checksum")

    def array(self, name: str) -> np.ndarray:
        """Decode one array.

        Raises:
            MemberError: it is missing, or its checksum does not match.
        """
        metadata = self.metadata.get(name)
        if metadata is None:
            raise MemberError(name, "is missing")
        shape, dtype = tuple(metadata["shape"]), metadata["data_type"]
        chunk = chunk_name(name, metadata)
        if chunk not in self.places or dtype not in DTYPES:
            raise MemberError(name, "is missing" if dtype in DTYPES else f"has the unknown dtype {dtype}")
        start, end = self.places[chunk]
        out = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
        decode_chunk(self.data[start:end], metadata["codecs"], out, name)
        return out


def chunk_name(name: str, metadata: dict[str, Any]) -> str:
    """Zip member of an array's only chunk."""
    return f"{name}/c/{'/'.join('0' * len(metadata['shape']))}"


def read_members(data: bytes) -> GroupMembers:
    """Parse the zip directory and the group's metadata.

    Raises:
        MemberError: the file is not a zip archive, is cut off, or its metadata is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, OverflowError, struct.error, NotImplementedError) as error:
        raise MemberError("the zip directory", f"cannot be read ({error}): the file is cut off or damaged") from error
    view = memoryview(data)
    places = {info.filename: place_of(view, info) for info in infos}
    crc = {info.filename: info.CRC for info in infos}
    if "zarr.json" not in places:
        raise MemberError("zarr.json", "is missing")
    start, end = places["zarr.json"]
    if zlib.crc32(view[start:end]) != crc["zarr.json"]:
        raise MemberError("zarr.json", "does not match its checksum")
    try:
        document = json.loads(data[start:end])
        metadata = document["consolidated_metadata"]["metadata"]
        return GroupMembers(view, places, crc, document["attributes"], metadata)
    except (ValueError, KeyError, TypeError) as error:
        raise MemberError("zarr.json", f"is not the metadata of a scan file ({error!r})") from error


def place_of(data: memoryview, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a stored member's bytes are.

    Raises:
        MemberError: they are compressed, or not within the file.
    """
    header = info.header_offset
    if info.compress_type != zipfile.ZIP_STORED:
        raise MemberError(info.filename, "is compressed by zip; members of scan files are stored")
    if header + LOCAL_HEADER_BYTES > len(data) or data[header : header + 4] != b"PK\x03\x04":
        raise MemberError(info.filename, "is not where the zip directory says")
    name_bytes, extra_bytes = struct.unpack_from("<HH", data, header + 26)
    start = header + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    # A chunk's checksum does not know its array: the two places that do have to agree.
    if bytes(data[header + LOCAL_HEADER_BYTES :][:name_bytes]) != info.orig_filename.encode():
        raise MemberError(info.filename, "has another name in the zip directory")
    if start + info.file_size > len(data):
        raise MemberError(info.filename, "reaches beyond the end of the file")
    return start, start + info.file_size


def decode_chunk(chunk: memoryview, codecs: list[dict[str, Any]], out: np.ndarray, name: str) -> None:
    """Undo a Zarr v3 codec chain into `out`.

    Raises:
        MemberError: the checksum does not match, the data does not decode, or a codec is unknown.
    """
    data: Any = chunk
    decoded = False
    for codec in reversed(codecs):
        kind = codec["name"]
        if kind == "crc32c":
            data = checked(data, name)
        elif kind in ("zstd", "blosc"):
            try:
                (numcodecs.zstd if kind == "zstd" else numcodecs.blosc).decompress(data, out)
            except (RuntimeError, ValueError) as error:
                raise MemberError(name, f"does not decode ({error})") from error
            decoded = True
        elif kind != "bytes" or codec.get("configuration", {}).get("endian", "little") != "little":
            raise MemberError(name, f"uses the codec {codec}, which scan files do not")
    if not decoded:
        if len(data) != out.nbytes:
            raise MemberError(name, f"has {len(data)} bytes instead of {out.nbytes}")
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def checked(data: memoryview, name: str) -> memoryview:
    """The chunk without its crc32c.

    Raises:
        MemberError: it does not match.
    """
    if len(data) < CHECKSUM_BYTES:
        raise MemberError(name, "is cut off")
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    # The checksum's extension takes no memoryview, but an array over the same memory: nothing is copied.
    if google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(checksum, "little"):
        raise MemberError(name, "does not match its checksum")
    return body
