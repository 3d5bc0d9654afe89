"""From one store to another without the teacher: fewer arrays, or smaller encodings. And to plain NumPy files."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common.base.config import Settings
from common.base.errors import StoreError
from common.base.files import replacing
from common.scans.scan_id import ScanId
from common.targets.store.checks import ForeignFileError, check_scan_file
from common.targets.store.chunks import MemberError
from common.targets.store.encoding import STORED_DTYPES, ArrayEncoding, decodable, encode
from common.targets.store.identity import StoreIdentity, TargetEncoding
from common.targets.store.maintenance import whole_content
from common.targets.store.manifest import read_manifest
from common.targets.store.members import GroupMembers, read_members
from common.targets.store.scan_file import LOGITS, PILLAR_FEATURES, VOXEL_FEATURES, coordinates_name, layer_of
from common.targets.store.storage import refused
from common.targets.store.store import TargetStore
from common.targets.store.zarr_zip import zip_of_group

PRECISION = {"float32": 3, "float16": 2, "int8_channel": 1, "int8_row": 1}
"""Encodings from the most to the least exact; the two of one byte round in different places."""


class KeptArrays(Settings):
    """What a converted store keeps of its source, and how it is written.

    Attributes:
        layers: teacher layers.
        voxel_features: keep voxel features, where the source has them.
        encoding: of the arrays.
    """

    layers: list[str]
    voxel_features: bool
    encoding: TargetEncoding


def kept_arrays(identity: StoreIdentity) -> dict[str, Any]:
    """Everything that a store holds, as the plain values of `KeptArrays`."""
    return {
        "layers": list(identity.layers),
        "voxel_features": identity.voxel_features,
        "encoding": identity.encoding.model_dump(mode="json"),
    }


def converted_identity(source: StoreIdentity, kept: KeptArrays) -> StoreIdentity:
    """Identity of a store that keeps some of the arrays of another one.

    Raises:
        StoreError: something is asked for that the source does not hold, or in more precision than it holds; lists
            each array.
    """
    layers = {name: channels for name, channels in source.layers.items() if name in kept.layers}
    unknown = [name for name in kept.layers if name not in layers]
    lines = [f"  layer {name}: the store has {', '.join(source.layers)}" for name in unknown]
    if source.layers and not kept.layers:
        lines.append("  layers: keep at least one")
    if kept.voxel_features and not source.voxel_features:
        lines.append("  voxel_features: the store keeps none")
    kinds = ["pillar_features", "logits"] + (["voxel_features"] if kept.voxel_features else [])
    for kind in kinds:
        have, want = getattr(source.encoding, kind), getattr(kept.encoding, kind)
        if have != want and PRECISION[want] >= PRECISION[have]:
            lines.append(f"  {kind}: stored as {have}; {want} cannot restore the precision that rounding lost")
        elif have == want == "int8_channel":
            for name in [LOGITS] if kind == LOGITS else layers:
                stored, what = source.encoding.steps_of(name), kind if kind == name else f"{kind} of {name}"
                if kept.encoding.steps_of(name) > stored:
                    lines.append(f"  {what}: stored in {stored} steps; more cannot restore what was lost")
    if lines:
        raise StoreError(
            "this store cannot be converted like that:\n" + "\n".join(lines) + "\nAsk for less, or dump again."
        )
    changes = {"layers": layers, "voxel_features": kept.voxel_features, "encoding": kept.encoding}
    return source.model_copy(update=changes)


def converted_scan(source: TargetStore, target: TargetStore, scan: ScanId, view: int) -> bytes:
    """The file of one scan-view of `source` for a store whose identity is a `converted_identity`.

    Arrays whose encoding stays are copied number for number, so that nothing is rounded twice.

    Raises:
        StoreError: the scan-view is damaged or of another store, or a value does not fit its new encoding.
    """
    try:
        members = read_members(whole_content(source, scan, view, target.signed))
        converted = converted_bytes(members, target.identity, source.identity.encoding)
        check_scan_file(converted, target.identity, scan, view, target.signed)
    except (StoreError, MemberError, ForeignFileError) as error:
        raise StoreError(f"scan {scan}, view {view}: {error}") from error
    return converted


def converted_bytes(members: GroupMembers, identity: StoreIdentity, before: TargetEncoding) -> bytes:
    """The scan file that a dump with this identity would have written, had the teacher said what `members` hold.

    Args:
        members: of the file that is converted.
        identity: of the new store.
        before: encoding of the store that is converted.
    """
    arrays: dict[str, np.ndarray] = {}
    features: dict[str, dict[str, Any]] = {}

    def add(name: str, coordinates: str, encoding: ArrayEncoding) -> None:
        stored = members.attributes["features"][name]
        place = coordinates_name(coordinates, stored["shape"])
        if place not in arrays:
            arrays[place] = members.array(place)
        encoded = {suffix: members.array(f"{name}{suffix}") for suffix in STORED_DTYPES[stored["encoding"]]}
        steps, steps_before = (one.steps_of(layer_of(name)) for one in (identity.encoding, before))
        coarser = encoding == "int8_channel" and steps != steps_before
        if encoding != stored["encoding"] or coarser:
            encoded = encode(decodable(encoded).decode(), encoding, name, steps)
        arrays.update({f"{name}{suffix}": values for suffix, values in encoded.items()})
        features[name] = {"shape": stored["shape"], "encoding": encoding}

    add(LOGITS, "voxels", identity.encoding.logits)
    for layer in identity.layers:
        add(f"{layer}{PILLAR_FEATURES}", "pillars", identity.encoding.pillar_features)
    for layer in identity.layers if identity.voxel_features else ():
        add(f"{layer}{VOXEL_FEATURES}", "voxels", identity.encoding.voxel_features)
    attributes = {**members.attributes, "features": features}
    # A file that does not say what it was written for could not be checked, and cannot vouch for its copy.
    if "identity_hash" in attributes:
        attributes["identity_hash"] = identity.hash
    return zip_of_group(arrays, attributes, identity.encoding)


def origin(store: TargetStore) -> dict[str, Any]:
    """Where targets were taken from, for the provenance of the store that they went to."""
    manifest = read_manifest(store.storage).values
    return {"location": store.location} | {key: manifest[key] for key in ("identity_hash", "made", "provenance")}


def plain_arrays(store: TargetStore, scan: ScanId, view: int) -> dict[str, np.ndarray]:
    """One scan-view as plain arrays.

    Returns:
        `voxels` int32 [V, 3]; `logits` float32 [V, classes]; for each layer `down1c.pillars` int32 [M, 2] and
        `down1c.pillar_features` float32 [M, C]; where the store keeps them `down1c.voxels` int32 [S, 3] and
        `down1c.voxel_features` float32 [S, C]; texts in JSON: `scan`, `view` (parameters), `grid` (shape, and limits
        in metres, radians, metres), `classes`, `teacher_hash`.

    Raises:
        StoreError: the scan-view is missing or damaged, or holds what no store of this identity does.
    """
    store.verify(scan, view)
    targets, parameters = store.read(scan, view, None, voxel_features=store.identity.voxel_features)
    arrays = {"voxels": targets.voxels[:, 1:].int().numpy(), "logits": targets.logits.numpy()}
    for name, layer in targets.layers.items():
        arrays[f"{name}.pillars"] = layer.pillars[:, 1:].int().numpy()
        arrays[f"{name}{PILLAR_FEATURES}"] = layer.features.numpy()
    for name, voxel_layer in targets.voxel_layers.items():
        arrays[f"{name}.voxels"] = voxel_layer.voxels[:, 1:].int().numpy()
        arrays[f"{name}{VOXEL_FEATURES}"] = voxel_layer.features.numpy()
    texts = {
        "scan": str(scan),
        "view": {"index": view, **parameters.model_dump(mode="json")},
        "grid": store.identity.grid.model_dump(mode="json"),
        "classes": store.identity.classes,
        "teacher_hash": store.identity.teacher_hash,
    }
    return arrays | {name: np.array(json.dumps(value)) for name, value in texts.items()}


def write_npz(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write a compressed `.npz` file, whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
    except OSError as error:
        raise refused(path, "written", error) from error
