"""What is in a store: scans, sizes, arrays. The listing and a sample of the files are all that is read."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from common.base.errors import StoreError
from common.scans.dataset import evenly
from common.targets.store.checks import ForeignFileError, check_belongs
from common.targets.store.chunks import MemberError
from common.targets.store.encoding import STORED_DTYPES
from common.targets.store.file_names import ScanView
from common.targets.store.manifest import read_manifest
from common.targets.store.members import read_members
from common.targets.store.storage import MissingFileError
from common.targets.store.store import TargetStore

SAMPLE_FILES, SAMPLE_BYTES = 64, 256_000_000
"""At most so many scan files, and about so many bytes, are looked into for the sizes of arrays."""


@dataclass(frozen=True)
class ArraySize:
    """Mean size of one array in the sampled scan files.

    Attributes:
        encoding: of features; the dtype of coordinates.
        stored: bytes in the file, scales included.
        uncompressed: bytes of the encoded numbers before the codec.
        plain: bytes of the same numbers as float32, or as uint32 for coordinates.
    """

    encoding: str
    stored: float
    uncompressed: float
    plain: float


@dataclass(frozen=True)
class SequenceContents:
    """What a store holds of one sequence: scans, scan-views, and their bytes."""

    scans: int
    scan_views: int
    size: int


class SourceStore(BaseModel):
    """A store that another one was made from: where it was, and when it was made."""

    location: str
    made: str


class Provenance(BaseModel):
    """What a manifest says about the making of its store, as far as it is shown.

    Attributes:
        project: version of this program.
        git_commit: of its checkout.
        packages: versions by name.
        converted_from: the store that this one was converted from.
        merged_from: the stores that this one was merged from.
    """

    project: str | None = None
    git_commit: str | None = None
    packages: dict[str, str | None] = {}
    converted_from: SourceStore | None = None
    merged_from: list[SourceStore] = []


@dataclass(frozen=True)
class StoreContents:
    """What is in a store.

    Attributes:
        manifest: as written when the store was made.
        provenance: from the manifest.
        sequences: by name.
        arrays: mean sizes by array.
        sampled: number of scan files that `arrays` comes from.
        unreadable: number of sampled files that could not be read, or are of another store.
    """

    manifest: dict[str, Any]
    provenance: Provenance
    sequences: dict[str, SequenceContents]
    arrays: dict[str, ArraySize]
    sampled: int
    unreadable: int

    @property
    def total(self) -> SequenceContents:
        """All sequences together."""
        parts = self.sequences.values()
        return SequenceContents(
            sum(p.scans for p in parts), sum(p.scan_views for p in parts), sum(p.size for p in parts)
        )


def contents(store: TargetStore) -> StoreContents:
    """Count what is in a store and measure its arrays on a sample of scan files.

    Raises:
        StoreError: the store cannot be listed, or its manifest does not describe its making.
    """
    manifest = read_manifest(store.storage).values
    try:
        provenance = Provenance.model_validate(manifest["provenance"])
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise StoreError(f"{store.location}: provenance.{place} in the manifest has not the expected form.") from error
    sizes = store.sizes()
    frames: dict[str, set[str]] = {}
    counts: dict[str, list[int]] = {}
    for (scan, _), size in sizes.items():
        frames.setdefault(scan.sequence, set()).add(scan.frame)
        counted = counts.setdefault(scan.sequence, [0, 0])
        counted[0] += 1
        counted[1] += size
    sequences = {name: SequenceContents(len(frames[name]), *counts[name]) for name in sorted(counts)}
    found = list(array_sizes(store, spread(sorted(sizes), sum(sizes.values()))))
    readable = [sizes_of_one for sizes_of_one in found if sizes_of_one is not None]
    return StoreContents(manifest, provenance, sequences, mean_sizes(readable), len(found), len(found) - len(readable))


def spread(items: Sequence[ScanView], size: int) -> list[ScanView]:
    """At most `SAMPLE_FILES` items and about `SAMPLE_BYTES`, spread evenly; `size` is the bytes of all items."""
    return evenly(items, min(SAMPLE_FILES, max(1, SAMPLE_BYTES * len(items) // max(size, 1))))


def array_sizes(store: TargetStore, items: Iterable[ScanView]) -> Iterator[dict[str, ArraySize] | None]:
    """Sizes of the arrays of some scan files; None for a file that cannot be read, or is of another store."""
    for scan, view in items:
        try:
            members = read_members(store.storage.read(store.name(scan, view)))
            features = check_belongs(members, store.identity, scan, view, store.signed).features
        except (MemberError, ForeignFileError, MissingFileError, StoreError, OSError):
            yield None
            continue
        stored, sizes = members.stored_bytes(), {}
        for name, metadata in members.metadata.items():
            if name in features:
                encoding: str = features[name].encoding
                parts = [f"{name}{suffix}" for suffix in STORED_DTYPES[features[name].encoding]]
                parts = [part for part in parts if part in stored]
            elif name.rpartition(".")[0] in features:
                continue
            else:
                parts, encoding = [name], metadata["data_type"]
            numbers = math.prod(metadata["shape"])
            uncompressed = sum(plain_bytes(members.metadata[part]) for part in parts)
            sizes[name] = ArraySize(encoding, sum(stored[part] for part in parts), uncompressed, 4 * numbers)
        yield sizes


def plain_bytes(metadata: dict[str, Any]) -> int:
    """Bytes of an array before its codec."""
    return math.prod(metadata["shape"]) * np.dtype(metadata["data_type"]).itemsize


def mean_sizes(files: Sequence[dict[str, ArraySize]]) -> dict[str, ArraySize]:
    """Mean over files, in the order of the first one."""
    means = {}
    for name, first in files[0].items() if files else ():
        same = [sizes[name] for sizes in files if name in sizes]
        stored, uncompressed, plain = (
            float(np.mean([getattr(size, field) for size in same])) for field in ("stored", "uncompressed", "plain")
        )
        means[name] = ArraySize(first.encoding, stored, uncompressed, plain)
    return means
