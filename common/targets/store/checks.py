"""Scan files held against the identity of their store: quickly on every read, wholly when written and verified."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from common.base.errors import StoreError
from common.scans.scan_id import ScanId
from common.targets.store.chunks import MemberError
from common.targets.store.encoding import STORED_DTYPES, ArrayEncoding, DecodableFeatures, UnstorableError
from common.targets.store.identity import StoreIdentity, differences
from common.targets.store.layout import FileAttributes, FileLayout, attributes_of
from common.targets.store.members import ArraySource, GroupMembers, read_members
from common.targets.store.scan_file import LOGITS, PILLAR_FEATURES, VOXEL_FEATURES, EncodedTargets, targets_of


class ForeignFileError(Exception):
    """A scan file is whole, but does not belong where it stands.

    Attributes:
        lines: one for each difference: what the file has, and what its place asks for.
        summary: the differences in one line, of the file only.
    """

    def __init__(self, found: dict[str, Any], expected: dict[str, Any]) -> None:
        self.lines = differences(found, expected, sides=("the file", "its place in the store"))
        other = [f"{name} {value}" for name, value in found.items() if value != expected[name]]
        self.summary = f"is of another store: it has {', '.join(other)}"
        super().__init__(self.summary)


@contextmanager
def errors_named(scan: ScanId, index: int) -> Iterator[None]:
    """Errors about targets say of which scan and view these are."""
    try:
        yield
    except UnstorableError as error:
        raise UnstorableError(f"scan {scan}, view {index}: {error.message}") from error
    except (StoreError, MemberError, ForeignFileError) as error:
        raise StoreError(f"scan {scan}, view {index}: {error}") from error


def expected_features(identity: StoreIdentity) -> dict[str, tuple[ArrayEncoding, int]]:
    """Encoding and channels of every array of features that the scan files of a store hold, by name."""
    encoding = identity.encoding
    features = {LOGITS: (encoding.logits, len(identity.classes))}
    for name, channels in identity.layers.items():
        features[f"{name}{PILLAR_FEATURES}"] = (encoding.pillar_features, channels)
        if identity.voxel_features:
            features[f"{name}{VOXEL_FEATURES}"] = (encoding.voxel_features, channels)
    return features


def check_belongs(
    members: ArraySource, identity: StoreIdentity, scan: ScanId, view: int, signed: bool = True
) -> FileAttributes:
    """The attributes of a file, which must not be of another store, scan or view.

    Args:
        members: of the file.
        identity: of the store.
        scan: that the file should be of.
        view: number of the view that it should be of.
        signed: whether it must have the hash of the identity; what else it says has to do for files from before.

    Raises:
        ForeignFileError: it is one.
        MemberError: its attributes are not those of a scan file.
    """
    attributes = attributes_of(members, FileAttributes)
    features = expected_features(identity)
    expected: dict[str, Any] = {
        "teacher_hash": identity.teacher_hash,
        "scan": str(scan),
        "view_index": view,
        "grid_shape": identity.grid.shape,
    }
    found: dict[str, Any] = {
        "teacher_hash": attributes.teacher_hash,
        "scan": attributes.scan,
        "view_index": attributes.view_index,
        "grid_shape": attributes.grid_shape,
    }
    for name, stored in attributes.features.items():
        expected[f"encoding of {name}"] = features[name][0] if name in features else None
        found[f"encoding of {name}"] = stored.encoding
    if signed or attributes.identity_hash is not None:
        expected["identity_hash"], found["identity_hash"] = identity.hash, attributes.identity_hash
    if found != expected:
        raise ForeignFileError(found, expected)
    return attributes


def read_checked(
    members: ArraySource, layout: FileLayout, identity: StoreIdentity, layers: list[str], voxel_features: bool
) -> EncodedTargets:
    """Targets of a file that belongs to a store, see `targets_of`.

    Raises:
        MemberError: an array is damaged or missing, or has other channels than the store's; names it.
    """
    targets = targets_of(members, layout, layers, voxel_features)
    features = expected_features(identity)
    for name, stored in named_features(targets).items():
        channels = stored.values.shape[1]
        if channels != features[name][1]:
            raise MemberError(name, f"has {channels} channels; the store's identity says {features[name][1]}")
    return targets


def check_scan_file(
    content: bytes, identity: StoreIdentity, scan: ScanId, view: int, signed: bool = True
) -> tuple[FileAttributes, GroupMembers]:
    """Check everything about a scan file that its store lets one know. What is written has to pass, and is verified so.

    `signed` as in `check_belongs`.

    Raises:
        ForeignFileError: it belongs to another store, scan or view.
        MemberError: a byte is not what was written, or the file does not hold exactly what the identity promises:
            every layer, with its channels; a row for each coordinate; coordinates sorted, each once and within the
            grid; finite numbers. Names the array.
    """
    members = read_members(content)
    attributes = check_arrays(members, identity, scan, view, signed)
    members.check_zip()
    return attributes, members


def check_arrays(
    members: ArraySource, identity: StoreIdentity, scan: ScanId, view: int, signed: bool = True
) -> FileAttributes:
    """As `check_scan_file`, of arrays that may not have been written yet."""
    attributes = check_belongs(members, identity, scan, view, signed)
    targets = read_checked(members, attributes, identity, list(identity.layers), identity.voxel_features)
    check_contents(targets)
    arrays = {
        f"{name}{suffix}"
        for name, (encoding, _) in expected_features(identity).items()
        for suffix in STORED_DTYPES[encoding]
    }
    further = members.names - arrays - targets.coordinates.keys()
    if further:
        raise MemberError(min(further), "does not belong into a file of this store")
    return attributes


def check_contents(targets: EncodedTargets) -> None:
    """Refuse numbers that no teacher may have said.

    Raises:
        MemberError: one is NaN or infinite; names the array.
    """
    for name, features in named_features(targets).items():
        # Decoding everything takes longer than all else; almost always the largest numbers settle it.
        parts = [part for part in (features.values, features.channel_scale, features.row_scale) if part is not None]
        bound = math.prod(map(largest, parts))
        if not bound <= torch.finfo(torch.float32).max and not torch.isfinite(features.decode()).all():
            raise MemberError(name, "holds NaN or infinity")


def largest(numbers: torch.Tensor) -> float:
    """Largest absolute value; NaN if there is one."""
    if not numbers.is_floating_point():
        return -float(torch.iinfo(numbers.dtype).min)
    if not numbers.numel():
        return 0.0
    low, high = numbers.aminmax()
    return max(abs(float(low)), abs(float(high)))


def named_features(targets: EncodedTargets) -> dict[str, DecodableFeatures]:
    """Features by the names of their arrays."""
    pillars = {f"{name}{PILLAR_FEATURES}": layer.features for name, layer in targets.layers.items()}
    voxels = {f"{name}{VOXEL_FEATURES}": layer.features for name, layer in targets.voxel_layers.items()}
    return {LOGITS: targets.logits, **pillars, **voxels}
