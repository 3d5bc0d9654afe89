"""Writing Zarr v3 groups in zip files: what zarr-python writes, without its machinery.

zarr takes longer for an array's metadata and its asynchronous stores than the codec for the array. The files are plain
Zarr v3: one chunk and one checksum per array, all members stored.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.base.errors import StoreError
from common.targets.store.compression import chunk_bytes, compressors
from common.targets.store.identity import TargetEncoding
from common.targets.store.members import LOCAL_HEADER, LOCAL_SIGNATURE, chunk_name

DIRECTORY_ENTRY = struct.Struct("<4s6H3I5H2I")
DIRECTORY_END = struct.Struct("<4s4H2IH")
ZIP_VERSION = 20
MADE_ON_UNIX = 3 << 8 | ZIP_VERSION
NAME_IN_UTF8 = 0x800
FIRST_OF_1980 = 1 << 5 | 1
OWNER_READS_AND_WRITES = 0o600 << 16
LARGEST_ZIP = 2**32 - 2**20
"""Bytes of its members: the plain format counts to 4 GiB, headers and directory included."""


def zip_of_group(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], encoding: TargetEncoding) -> bytes:
    """Arrays and attributes as a Zarr v3 group in a zip file, always in the same order and without times."""
    members: dict[str, bytes] = {}
    metadata = {name: array_metadata(arrays[name], encoding) for name in sorted(arrays)}
    for name, values in arrays.items():
        members[f"{name}/zarr.json"] = as_json(metadata[name])
        # An array without numbers has no chunk.
        if values.size:
            members[chunk_name(name, metadata[name])] = chunk_bytes(values, encoding)
    members["zarr.json"] = as_json(
        {
            "attributes": dict(attributes),
            "zarr_format": 3,
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": metadata},
            "node_type": "group",
        }
    )
    return stored_zip({name: members[name] for name in sorted(members)})


def as_json(document: Any) -> bytes:
    """As zarr writes it."""
    return json.dumps(document, indent=2).encode()


def array_metadata(values: np.ndarray, encoding: TargetEncoding) -> dict[str, Any]:
    """What `zarr.json` says of an array."""
    size = values.dtype.itemsize
    order = {"name": "bytes", "configuration": {"endian": "little"}} if size > 1 else {"name": "bytes"}
    return {
        "shape": list(values.shape),
        "data_type": values.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [max(length, 1) for length in values.shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if values.dtype.kind == "f" else 0,
        "codecs": [order, *compressors(size, encoding), {"name": "crc32c"}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def stored_zip(members: Mapping[str, bytes]) -> bytes:
    """A zip file of members as they are, without times: what `zipfile` writes, with one copy instead of three.

    Raises:
        StoreError: it would be too large for the plain zip format.
    """
    if sum(map(len, members.values())) > LARGEST_ZIP:
        raise StoreError(
            f"a scan's targets are larger than {LARGEST_ZIP:,} bytes, which no zip file can hold; keep less"
        )
    parts: list[bytes] = []
    directory: list[bytes] = []
    offset = 0
    for name, data in members.items():
        encoded = name.encode()
        flags = 0 if name.isascii() else NAME_IN_UTF8
        common = (ZIP_VERSION, flags, zipfile.ZIP_STORED, 0, FIRST_OF_1980, zlib.crc32(data), len(data), len(data))
        header = LOCAL_HEADER.pack(LOCAL_SIGNATURE, *common, len(encoded), 0)
        place = (len(encoded), 0, 0, 0, 0, OWNER_READS_AND_WRITES, offset)
        parts += [header, encoded, data]
        directory += [DIRECTORY_ENTRY.pack(b"PK\x01\x02", MADE_ON_UNIX, *common, *place), encoded]
        offset += len(header) + len(encoded) + len(data)
    size = sum(map(len, directory))
    end = DIRECTORY_END.pack(b"PK\x05\x06", 0, 0, len(members), len(members), size, offset, 0)
    return b"".join([*parts, *directory, end])
