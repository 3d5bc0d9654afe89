"""Writing Zarr v3 groups in zip files: what zarr-python writes, without its machinery.

zarr takes longer for an array's metadata and its asynchronous stores than the codec for the array. The files are plain
Zarr v3: one chunk and one checksum per array, all members stored.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.targets.store.compression import chunk_bytes, compressors
from common.targets.store.identity import TargetEncoding
from common.targets.store.members import chunk_name


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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name])
    return buffer.getvalue()


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
