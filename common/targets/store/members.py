"""Reading Zarr v3 groups in zip files straight from their bytes: the same standard files, without zarr's machinery.

zarr opens such a file in several passes through its asynchronous stores, which takes longer than decoding the data.
Here the bytes of a file are parsed once and each array decoded once into its own memory. Every byte that is used is
covered by a checksum that is verified: metadata by the zip directory's CRC-32, chunks by Zarr's crc32c codec.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from common.base.untrusted_json import parse_json
from common.targets.store.archive import UNREADABLE_ZIP
from common.targets.store.chunks import MemberError, check_metadata, decode_chunk

LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
HARMLESS_FLAGS = 0x080E
"""Bits of a member's flags that change nothing about stored bytes: level, sizes behind the data, names in UTF-8."""

SIZES_BEHIND = 0x0008


class ArraySource(Protocol):
    """The arrays of a scan file, of one that was parsed or of one that is about to be written."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the group."""

    @property
    def names(self) -> Set[str]:
        """Of its arrays."""

    def array(self, name: str) -> np.ndarray:
        """One array. Raises MemberError."""


@dataclass(frozen=True)
class UnwrittenArrays:
    """What a scan file is about to hold: attributes of the group, and arrays by name."""

    attributes: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def names(self) -> Set[str]:
        """Of the arrays."""
        return self.arrays.keys()

    def array(self, name: str) -> np.ndarray:
        """One array.

        Raises:
            MemberError: the file would not have it: it is not there, or holds nothing.
        """
        if name not in self.arrays or not self.arrays[name].size:
            raise MemberError(name, "is missing")
        return self.arrays[name]


@dataclass(frozen=True)
class GroupMembers:
    """A parsed file.

    Attributes:
        data: its bytes.
        places: (start, end) of each zip member.
        entries: of the zip directory, by member.
        attributes: of the group.
        metadata: of each array.
    """

    data: memoryview
    places: dict[str, tuple[int, int]]
    entries: dict[str, zipfile.ZipInfo]
    attributes: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def names(self) -> Set[str]:
        """Of the arrays."""
        return self.metadata.keys()

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of each array in the file, without metadata."""
        chunks = {name: self.places.get(chunk_name(name, one), (0, 0)) for name, one in self.metadata.items()}
        return {name: end - start for name, (start, end) in chunks.items()}

    def check_zip(self) -> None:
        """Verify what `array` does not look at and other readers do: the CRC-32 and the header of every zip member.

        Raises:
            MemberError: one does not match.
        """
        for member, (start, end) in self.places.items():
            entry = self.entries[member]
            if zlib.crc32(self.data[start:end]) != entry.CRC:
                raise MemberError(member, "does not match its checksum")
            _, _, flags, method, _, _, checksum, stored, plain, _, _ = LOCAL_HEADER.unpack_from(
                self.data, entry.header_offset
            )
            sizes = entry.flag_bits & SIZES_BEHIND or (checksum, stored, plain) == (entry.CRC, end - start, end - start)
            if flags != entry.flag_bits or method != entry.compress_type or not sizes:
                raise MemberError(member, "has another header than the zip directory says")

    def array(self, name: str) -> np.ndarray:
        """Decode one array.

        Raises:
            MemberError: it is missing, or its checksum does not match.
        """
        metadata = self.metadata.get(name)
        if metadata is None or (chunk := chunk_name(name, metadata)) not in self.places:
            raise MemberError(name, "is missing")
        start, end = self.places[chunk]
        return decode_chunk(self.data[start:end], metadata, name)


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
            entries = {entry.filename: entry for entry in archive.infolist()}
    except UNREADABLE_ZIP as error:
        raise MemberError("the zip directory", f"cannot be read ({error}): the file is cut off or damaged") from error
    view = memoryview(data)
    places = {name: place_of(view, entry) for name, entry in entries.items()}
    if "zarr.json" not in places:
        raise MemberError("zarr.json", "is missing")
    start, end = places["zarr.json"]
    if zlib.crc32(view[start:end]) != entries["zarr.json"].CRC:
        raise MemberError("zarr.json", "does not match its checksum")
    try:
        document = parse_json(view[start:end])
        attributes, metadata = document["attributes"], document["consolidated_metadata"]["metadata"]
    except (ValueError, KeyError, TypeError) as error:
        raise MemberError("zarr.json", f"is not the metadata of a scan file ({error!r})") from error
    if not isinstance(attributes, dict) or not isinstance(metadata, dict):
        raise MemberError("zarr.json", "is not the metadata of a scan file")
    for name, one in metadata.items():
        check_metadata(name, one)
    return GroupMembers(view, places, entries, attributes, metadata)


def place_of(data: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a stored member's bytes are.

    Raises:
        MemberError: they are compressed or encrypted, or not within the file.
    """
    name, header = entry.filename, entry.header_offset
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise MemberError(name, "is compressed by zip; members of scan files are stored")
    if entry.flag_bits & ~HARMLESS_FLAGS:
        raise MemberError(name, "is encrypted, or marked in a way that scan files are not")
    if not 0 <= header <= len(data) - LOCAL_HEADER.size or data[header : header + 4] != LOCAL_SIGNATURE:
        raise MemberError(name, "is not where the zip directory says")
    *_, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(data, header)
    first = header + LOCAL_HEADER.size
    start = first + name_bytes + extra_bytes
    # A chunk's checksum does not know its array: the two places that do have to agree.
    if bytes(data[first : first + name_bytes]) != entry.orig_filename.encode(errors="replace"):
        raise MemberError(name, "has another name in the zip directory")
    if start + entry.file_size > len(data):
        raise MemberError(name, "reaches beyond the end of the file")
    return start, start + entry.file_size
