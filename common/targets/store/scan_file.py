"""One scan-view as one standard Zarr v3 group in a zip file: stored members, one chunk and one checksum per array.

Arrays, all at the root of the group (`cache/README.md` describes them for readers of other programs):

    voxels.480x360x32        uint32 [V]      occupied voxels, linear index (rho * phi_bins + phi) * z_bins + z, sorted
    logits                   [V, classes]    teacher logits, one row for each occupied voxel
    pillars.240x180          uint32 [M]      pillars at that resolution, linear index rho * phi_bins + phi, sorted
    down1c.pillar_features   [M, C]          one row for each pillar at the layer's resolution
    voxels.240x180x16        uint32 [S]      active voxels at that resolution (only with voxel features)
    down1c.voxel_features    [S, C]          one row for each active voxel (only with voxel features)

Layers of equal resolution share one array of coordinates. Features in one byte have their scales beside them, under
the same name and a suffix. `zip_of_group` writes the files and `read_members` reads them, both without zarr and several
times faster; zarr reads them as well.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import torch

from common.base.errors import StoreError
from common.base.records import move_tensors, start_to_host
from common.targets.store.chunks import MemberError
from common.targets.store.encoding import (
    STORED_DTYPES,
    ArrayEncoding,
    DecodableFeatures,
    check_storable,
    decodable,
    misfit,
    quantise,
)
from common.targets.store.identity import TargetEncoding
from common.targets.store.layout import FileLayout
from common.targets.store.members import ArraySource, UnwrittenArrays
from common.targets.store.zarr_zip import zip_of_group
from common.targets.teacher_targets import Layer, PillarFeatures, TeacherTargets, VoxelFeatures
from common.targets.transport import linear_index

PILLAR_FEATURES = ".pillar_features"
VOXEL_FEATURES = ".voxel_features"
LOGITS = "logits"


@dataclass(frozen=True)
class EncodedLayer:
    """Features of one layer as stored, and its resolution: (R, P) for pillars, (R, P, Z) for voxels."""

    features: DecodableFeatures
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EncodedTargets:
    """Targets of one scan-view as stored; `decode` makes them `TeacherTargets` on the device where they are.

    Attributes:
        grid_shape: (R, P, Z) of the grid.
        coordinates: int32, sorted linear indices by array name (`voxels.480x360x32`).
        logits: of every occupied voxel.
        layers: pillar features by teacher layer.
        voxel_layers: voxel features by teacher layer.
    """

    grid_shape: tuple[int, int, int]
    coordinates: dict[str, torch.Tensor]
    logits: DecodableFeatures
    layers: dict[str, EncodedLayer]
    voxel_layers: dict[str, EncodedLayer]

    @property
    def voxels(self) -> torch.Tensor:
        """Sorted linear indices of the occupied voxels, int32 [V]."""
        return self.coordinates[coordinates_name("voxels", self.grid_shape)]

    def to(self, device: torch.device | str) -> "EncodedTargets":
        """The same targets on another device."""
        return move_tensors(self, device)

    def decode(self) -> TeacherTargets:
        """Targets of one scan: bins as int64 rows with the scan's number 0 first, features as float32."""
        bins = {name: from_linear(linear, shape_of(name)) for name, linear in self.coordinates.items()}

        def decoded(kind: str, layer: EncodedLayer) -> Any:
            return bins[coordinates_name(kind, layer.shape)], layer.features.decode(), layer.shape

        layers = {name: PillarFeatures(*decoded("pillars", layer)) for name, layer in self.layers.items()}
        voxel_layers = {name: VoxelFeatures(*decoded("voxels", layer)) for name, layer in self.voxel_layers.items()}
        grid_voxels = bins[coordinates_name("voxels", self.grid_shape)]
        return TeacherTargets(grid_voxels, self.logits.decode(), layers, voxel_layers)


def encoded_as_is(targets: TeacherTargets, grid_shape: tuple[int, int, int]) -> EncodedTargets:
    """Targets of one scan in the form in which stored ones are read; `decode` gives them back. No voxel features."""
    coordinates = {coordinates_name("voxels", grid_shape): linear_bins(targets.voxels, grid_shape)}
    for layer in targets.layers.values():
        coordinates.setdefault(coordinates_name("pillars", layer.shape), linear_bins(layer.pillars, layer.shape))
    layers = {name: EncodedLayer(DecodableFeatures(part.features), part.shape) for name, part in targets.layers.items()}
    return EncodedTargets(grid_shape, coordinates, DecodableFeatures(targets.logits), layers, {})


def scan_file_bytes(
    targets: TeacherTargets, grid_shape: tuple[int, int, int], encoding: TargetEncoding, attributes: Mapping[str, Any]
) -> bytes:
    """The file of one scan-view, see `start_encoding`. Equal targets give equal bytes."""
    scan = start_encoding(targets, grid_shape, encoding, attributes)()
    return zip_of_group(scan.arrays, scan.attributes, encoding)


def start_encoding(
    targets: TeacherTargets, grid_shape: tuple[int, int, int], encoding: TargetEncoding, attributes: Mapping[str, Any]
) -> Callable[[], UnwrittenArrays]:
    """Launch the encoding of a scan-view on the targets' device.

    Returns:
        a function that waits for it, in any thread, and gives what the file will hold.

    Raises:
        StoreError: here or there: a value is NaN or infinite, or does not fit its encoding, or coordinates are not bins
            of one scan; names the array.
    """
    places: dict[str, str] = {}
    layers: dict[str, dict[str, Any]] = {}
    pending: dict[str, list[torch.Tensor]] = {}

    def add(name: str, kind: str, how: ArrayEncoding, layer: Layer) -> None:
        bins, features, shape = layer
        if features.ndim != 2:
            raise StoreError(f"{name}: has the shape {tuple(features.shape)} instead of rows and channels")
        places[name], layers[name] = coordinates_name(kind, shape), {"shape": list(shape), "encoding": how}
        quantised, largest = quantise(features, how, encoding.steps_of(layer_of(name)))
        pending[name] = [*placed_bins(bins, shape, places[name]), largest, *quantised.values()]

    add(LOGITS, "voxels", encoding.logits, (targets.voxels, targets.logits, grid_shape))
    for name, layer in targets.layers.items():
        whole: Layer = (layer.pillars, layer.features, layer.shape)
        add(f"{name}{PILLAR_FEATURES}", "pillars", encoding.pillar_features, whole)
    for name, in_voxels in targets.voxel_layers.items():
        whole = (in_voxels.voxels, in_voxels.features, in_voxels.shape)
        add(f"{name}{VOXEL_FEATURES}", "voxels", encoding.voxel_features, whole)
    copied = start_to_host(chain.from_iterable(pending.values()))
    counts = {name: len(tensors) for name, tensors in pending.items()}

    def finish() -> UnwrittenArrays:
        on_cpu = iter(copied())
        arrays: dict[str, np.ndarray] = {}
        for name, count in counts.items():
            linear, within, largest, *stored = (tensor.numpy() for tensor in islice(on_cpu, count))
            place, how = places[name], layers[name]["encoding"]
            if not within:
                raise StoreError(f"{place}: a bin is beyond the grid, or the bins are not rows of scan 0")
            if not np.array_equal(arrays.setdefault(place, linear.view(np.uint32)), linear.view(np.uint32)):
                raise StoreError(f"{place}: teacher layers of this resolution have different coordinates")
            check_storable(float(largest), how, name)
            arrays |= {f"{name}{suffix}": array for suffix, array in zip(STORED_DTYPES[how], stored, strict=True)}
        return UnwrittenArrays({**attributes, "grid_shape": list(grid_shape), "features": layers}, arrays)

    return finish


def placed_bins(bins: torch.Tensor, shape: tuple[int, ...], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates as they are stored, still on their device.

    Args:
        bins: int64 [M, 1 + K], those of one scan.
        shape: K sizes of the layer.
        name: of their array, for errors.

    Returns:
        int32 [M], linear indices; and bool [], whether all of them are bins of scan 0 on the grid.

    Raises:
        StoreError: they have another shape.
    """
    if bins.ndim != 2 or bins.shape[1] != 1 + len(shape):
        raise StoreError(f"{name}: bins of shape {tuple(bins.shape)} are not rows of scan 0 and {len(shape)} bins")
    within = torch.ones(len(bins), dtype=torch.bool, device=bins.device)
    for column, size in zip(bins.unbind(1), (1, *shape), strict=True):
        within &= (column >= 0) & (column < size)
    return linear_bins(bins, shape), within.all()


def targets_of(members: ArraySource, layout: FileLayout, layers: Iterable[str], voxel_features: bool) -> EncodedTargets:
    """Targets of one scan-view from its file. All checksums are verified.

    Args:
        members: the file, from `read_members`.
        layout: its layout, from `attributes_of`.
        layers: teacher layers to read; the others are not decoded.
        voxel_features: read the layers' voxel features too.

    Raises:
        MemberError: the file is damaged, lacks an array, or its arrays do not fit together; names the array.
    """
    grid_shape = layout.grid_shape
    coordinates: dict[str, torch.Tensor] = {}

    def layer(name: str, kind: Literal["pillars", "voxels"]) -> EncodedLayer:
        stored = layout.features.get(name)
        if stored is None:
            raise MemberError(name, "is not in the file")
        if not stored.fits(grid_shape[:2] if kind == "pillars" else grid_shape):
            raise MemberError(name, f"has the resolution {stored.shape} on a grid of {grid_shape}")
        arrays = {suffix: members.array(f"{name}{suffix}") for suffix in STORED_DTYPES[stored.encoding]}
        wrong = misfit(arrays, stored.encoding)
        if wrong is not None:
            raise MemberError(f"{name}{wrong[0]}", wrong[1])
        place = coordinates_name(kind, stored.shape)
        if place not in coordinates:
            coordinates[place] = read_coordinates(members, place, math.prod(stored.shape))
        features = decodable(arrays)
        if len(coordinates[place]) != len(features.values):
            raise MemberError(name, f"has {len(features.values)} rows for {len(coordinates[place])} {place}")
        return EncodedLayer(features, stored.shape)

    logits = layer(LOGITS, "voxels")
    if logits.shape != grid_shape:
        raise MemberError(LOGITS, f"has the resolution {logits.shape} instead of the grid's {grid_shape}")
    names = list(layers)
    pillar_layers = {name: layer(f"{name}{PILLAR_FEATURES}", "pillars") for name in names}
    voxel_layers = {name: layer(f"{name}{VOXEL_FEATURES}", "voxels") for name in names} if voxel_features else {}
    return EncodedTargets(grid_shape, coordinates, logits.features, pillar_layers, voxel_layers)


def read_coordinates(members: ArraySource, name: str, cells: int) -> torch.Tensor:
    """Linear indices int32 [M] of one resolution with so many cells.

    Raises:
        MemberError: they are missing or damaged, beyond the grid, unsorted or not unique.
    """
    linear = members.array(name)
    if linear.dtype != np.uint32 or linear.ndim != 1:
        raise MemberError(name, f"is {linear.dtype} {linear.shape} instead of a row of uint32")
    if len(linear) and int(linear.max()) >= cells:
        raise MemberError(name, f"has the index {int(linear.max())}; there are {cells} cells")
    if not (linear[1:] > linear[:-1]).all():
        raise MemberError(name, "is not sorted, or names a cell twice")
    return torch.from_numpy(linear.view(np.int32))


def layer_of(name: str) -> str:
    """The layer whose features an array holds; of the logits their own name."""
    return name.removesuffix(PILLAR_FEATURES).removesuffix(VOXEL_FEATURES)


def coordinates_name(kind: str, shape: Iterable[int]) -> str:
    """For example `pillars.240x180`."""
    return f"{kind}.{'x'.join(map(str, shape))}"


def shape_of(name: str) -> tuple[int, ...]:
    """The inverse of `coordinates_name`."""
    return tuple(int(size) for size in name.rpartition(".")[2].split("x"))


def linear_bins(bins: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Bins int64 [M, 1 + K] of scan 0 (first column) to linear indices, int32 [M], on their device."""
    return linear_index(bins, shape).int()


def from_linear(linear: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `linear_bins`: int64 [M, 1 + K], scan 0."""
    rest = linear.long()
    out = rest.new_zeros(len(rest), 1 + len(shape))
    for column in range(len(shape), 0, -1):
        size = shape[column - 1]
        out[:, column] = rest % size
        rest = torch.div(rest, size, rounding_mode="floor")
    return out
