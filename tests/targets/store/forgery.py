"""Scan files and manifests as somebody who means harm would write them: other contents under valid checksums."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import google_crc32c
import numpy as np

Change = Callable[[Any], None]


def members_of(data: bytes) -> dict[str, bytes]:
    """Content of every member of a zip file."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members: dict[str, bytes]) -> bytes:
    """A zip file with stored members."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def with_metadata(data: bytes, change: Change) -> bytes:
    """A scan file with other metadata: `change` is given the group's document to change."""
    members = members_of(data)
    document = json.loads(members["zarr.json"])
    change(document)
    return zip_of(members | {"zarr.json": json.dumps(document).encode()})


def with_chunk(data: bytes, array: str, change: Callable[[bytes], bytes]) -> bytes:
    """A scan file with another chunk of one array: `change` is given its bytes without the checksum."""
    members = members_of(data)
    name = next(name for name in members if name.startswith(f"{array}/c/"))
    return zip_of(members | {name: checked(change(members[name][:-4]))})


def with_numbers(data: bytes, array: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A scan file of a store without codec, with other numbers in one array; their shape may change too."""
    members = members_of(data)
    metadata = json.loads(members["zarr.json"])["consolidated_metadata"]["metadata"][array]
    content = members.pop(f"{array}/c/{'/'.join('0' * len(metadata['shape']))}")[:-4]
    numbers = change(np.frombuffer(content, metadata["data_type"]).reshape(metadata["shape"]))
    members[f"{array}/c/{'/'.join('0' * numbers.ndim)}"] = checked(numbers.tobytes())

    def reshape(group: Any) -> None:
        group["consolidated_metadata"]["metadata"][array]["shape"] = list(numbers.shape)

    return with_metadata(zip_of(members), reshape)


def checked(content: bytes) -> bytes:
    """A chunk's bytes with their checksum."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def with_identity(manifest: bytes, change: Change) -> bytes:
    """A manifest of another identity, hashed anew."""
    values = json.loads(manifest)
    change(values["identity"])
    text = json.dumps(values["identity"], sort_keys=True)
    return json.dumps(values | {"identity_hash": hashlib.sha256(text.encode()).hexdigest()}).encode()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from places(child, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace the value at a path; `...` removes it."""
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = new
