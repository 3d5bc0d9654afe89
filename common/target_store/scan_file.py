"""One scan-view as one standard Zarr v3 group in a zip file (stored members, one chunk per array).

Arrays, all at the root of the group:

    voxels.480x360x32        uint32 [V]      occupied voxels, linear index (rho * phi_bins + phi) * z_bins + z, sorted
    logits                   float  [V, C]   teacher logits, one row for each occupied voxel
    pillars.240x180          uint32 [M]      pillars at that resolution, linear index rho * phi_bins + phi, sorted
    down1c.pillar_features   float  [M, C]   one row for each pillar at the layer's resolution
    voxels.240x180x16        uint32 [S]      active voxels at that resolution (only with voxel features)
    down1c.voxel_features    float  [S, C]   one row for each active voxel (only with voxel features)

Layers of equal resolution share one array of coordinates. Which resolution a layer has is in its attribute `shape`.
"""

import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec, BloscShuffle
from zarr.storage import ZipStore

from common.errors import StoreError
from common.target_store.identity import TargetEncoding
from common.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures

PILLAR_FEATURES = ".pillar_features"
VOXEL_FEATURES = ".voxel_features"


def write_scan_file(
    path: Path,
    targets: TeacherTargets,
    grid_shape: tuple[int, ...],
    encoding: TargetEncoding,
    attributes: dict[str, Any],
) -> None:
    """Write the targets of one scan-view.

    Raises:
        StoreError: a value is NaN or infinite, or does not fit the encoding.
    """
    arrays: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {}
    add_coordinates(arrays, "voxels", targets.voxels, grid_shape)
    arrays["logits"] = (encoded(targets.logits, encoding, "logits"), grid_shape)
    for name, layer in targets.layers.items():
        add_coordinates(arrays, "pillars", layer.pillars, layer.shape)
        key = f"{name}{PILLAR_FEATURES}"
        arrays[key] = (encoded(layer.features, encoding, key), layer.shape)
    for name, voxel_layer in targets.voxel_layers.items():
        add_coordinates(arrays, "voxels", voxel_layer.voxels, voxel_layer.shape)
        key = f"{name}{VOXEL_FEATURES}"
        arrays[key] = (encoded(voxel_layer.features, encoding, key), voxel_layer.shape)
    with ZipStore(path, mode="w", compression=zipfile.ZIP_STORED) as zip_store:
        group = zarr.create_group(zip_store, attributes={**attributes, "grid_shape": list(grid_shape)})
        for key, (values, shape) in arrays.items():
            group.create_array(
                key,
                data=values,
                chunks=values.shape,
                compressors=compressors(values, encoding),
                attributes={"shape": list(shape)},
                # Zarr leaves out chunks of zeros only and reads a lost chunk as zeros; written, its loss is noticed.
                config={"write_empty_chunks": True},
            )


def read_scan_file(
    path: Path, layers: Iterable[str], voxel_features: bool = False
) -> tuple[TeacherTargets, dict[str, Any]]:
    """Read the targets of one scan-view, float32, and the attributes it was written with.

    Args:
        path: the file.
        layers: teacher layers to read; others are not touched.
        voxel_features: read the layers' voxel features too.

    Raises:
        StoreError: the file is damaged, or lacks an array; names the file and the array.
    """
    array = "the zip directory"
    try:
        # Zarr would read an array whose chunk is lost as zeros, so each one is looked up in the directory first.
        with zipfile.ZipFile(path) as archive:
            present = set(archive.namelist())
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("a member is marked as compressed; all are written as they are")
        with ZipStore(path, mode="r") as zip_store:
            group = zarr.open_group(zip_store, mode="r")
            attributes: dict[str, Any] = dict(group.attrs)
            grid_shape = tuple(attributes["grid_shape"])
            members = {}
            for array in wanted_arrays(list(layers), voxel_features, group, grid_shape):
                member: Any = group[array]
                if chunk_name(array, member.ndim) not in present:
                    raise KeyError(f"{chunk_name(array, member.ndim)} is missing")
                members[array] = (np.asarray(member[:]), tuple(member.attrs["shape"]))
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, RuntimeError, EOFError) as error:
        raise StoreError(
            f"{path}: {array} cannot be read ({type(error).__name__}: {error}). The file is damaged: delete it and run "
            "make dump-teacher again, which makes exactly what is missing."
        ) from error
    return assemble(members, list(layers), voxel_features, grid_shape), attributes


def chunk_name(array: str, dimensions: int) -> str:
    """Member that holds the one chunk of an array, for example `logits/c/0/0`."""
    return f"{array}/c{'/0' * dimensions}"


def wanted_arrays(
    layers: list[str], voxel_features: bool, group: zarr.Group, grid_shape: tuple[int, ...]
) -> Iterable[str]:
    """Names of the arrays that hold some layers, each once."""
    names = [coordinates_name("voxels", grid_shape), "logits"]
    kinds = [("pillars", PILLAR_FEATURES)] + [("voxels", VOXEL_FEATURES)] * voxel_features
    for kind, suffix in kinds:
        for layer in layers:
            shape: Any = group[f"{layer}{suffix}"].attrs["shape"]
            names += [coordinates_name(kind, shape), f"{layer}{suffix}"]
    return dict.fromkeys(names)


def assemble(
    arrays: dict[str, tuple[np.ndarray, tuple[int, ...]]],
    layers: list[str],
    voxel_features: bool,
    grid_shape: tuple[int, ...],
) -> TeacherTargets:
    """Arrays of one scan-view as targets."""

    def bins(kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        return from_linear(arrays[coordinates_name(kind, shape)][0], shape)

    def features(key: str) -> tuple[torch.Tensor, Any]:
        values, shape = arrays[key]
        return torch.from_numpy(values).float(), shape

    pillar_layers, voxel_layers = {}, {}
    for name in layers:
        values, shape = features(f"{name}{PILLAR_FEATURES}")
        pillar_layers[name] = PillarFeatures(bins("pillars", shape), values, shape)
        if voxel_features:
            values, shape = features(f"{name}{VOXEL_FEATURES}")
            voxel_layers[name] = VoxelFeatures(bins("voxels", shape), values, shape)
    return TeacherTargets(bins("voxels", grid_shape), features("logits")[0], pillar_layers, voxel_layers)


def add_coordinates(
    arrays: dict[str, tuple[np.ndarray, tuple[int, ...]]], kind: str, bins: torch.Tensor, shape: tuple[int, ...]
) -> None:
    """Add linear coordinates under their resolution's name, once for all layers of that resolution.

    Raises:
        StoreError: two layers of one resolution have different coordinates.
    """
    name = coordinates_name(kind, shape)
    linear = to_linear(bins, shape)
    if name in arrays and not np.array_equal(arrays[name][0], linear):
        raise StoreError(f"{name}: teacher layers of this resolution have different coordinates; this is a bug")
    arrays[name] = (linear, tuple(shape))


def coordinates_name(kind: str, shape: Iterable[int]) -> str:
    """For example `pillars.240x180`."""
    return f"{kind}.{'x'.join(map(str, shape))}"


def to_linear(bins: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Bins int64 [M, 1 + K] (scan first) of one scan to sorted linear indices, uint32 [M]."""
    columns = bins[:, 1:].cpu().numpy()
    return np.ravel_multi_index(tuple(columns.T), shape).astype(np.uint32)


def from_linear(linear: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `to_linear`: int64 [M, 1 + K], scan 0."""
    columns = np.unravel_index(linear.astype(np.int64), shape)
    return torch.from_numpy(np.stack((np.zeros(len(linear), np.int64), *columns), axis=1))


def encoded(values: torch.Tensor, encoding: TargetEncoding, name: str) -> np.ndarray:
    """Values in the dtype of the encoding.

    Raises:
        StoreError: a value is not finite, before or after.
    """
    source = values.detach().float().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        out = source.astype(encoding.dtype)
    if np.isfinite(out).all():
        return out
    if np.isfinite(source).all():
        largest = float(np.abs(source).max())
        raise StoreError(f"{name}: {largest:.3g} is too large for {encoding.dtype}; set encoding.dtype=float32")
    raise StoreError(f"{name}: the teacher produced NaN or infinity; check the scan and the checkpoint's volume")


def compressors(values: np.ndarray, encoding: TargetEncoding) -> tuple[BloscCodec, ...]:
    """Codec of one array; blosc adds a checksum-free frame, the zip directory holds the CRC of every member."""
    if encoding.codec == "none":
        return ()
    level = 3 if encoding.codec == "zstd" else 5
    return (
        BloscCodec(cname=encoding.codec, clevel=level, shuffle=BloscShuffle.shuffle, typesize=values.dtype.itemsize),
    )
