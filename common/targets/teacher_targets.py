"""What a teacher says about scans: the one thing that travels from stage one to stage two."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from common.base.errors import StoreError
from common.base.records import move_tensors, no_rows

Layer = tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]
"""Of pillars or voxels: bins int64 [M, 1 + K], features float [M, C], and the K sizes of the layer."""


@dataclass(frozen=True)
class PillarFeatures:
    """One teacher layer reduced to pillars (maximum over height); pillars that are not listed hold zeros.

    Attributes:
        pillars: int64 [M, 3], (scan, rho, phi) at the layer's own resolution, sorted.
        features: float [M, C].
        shape: (R, P), radial and azimuth bins of the layer.
    """

    pillars: torch.Tensor
    features: torch.Tensor
    shape: tuple[int, int]

    def dense(self, scans: int) -> torch.Tensor:
        """The layer as a map, zeros where there is no pillar: [scans, C, R, P], dtype of `features`."""
        radial, azimuth = self.shape
        out = self.features.new_zeros(scans, radial, azimuth, self.features.shape[1])
        scan, rho, phi = self.pillars.unbind(1)
        out[scan, rho, phi] = self.features
        return out.permute(0, 3, 1, 2)

    def to(self, device: torch.device | str) -> "PillarFeatures":
        """The same features on another device."""
        return move_tensors(self, device)


@dataclass(frozen=True)
class VoxelFeatures:
    """Features of the active voxels of one teacher layer.

    Attributes:
        voxels: int64 [S, 4], (scan, rho, phi, z) at the layer's own resolution, sorted.
        features: float [S, C].
        shape: (R, P, Z) bins of the layer.
    """

    voxels: torch.Tensor
    features: torch.Tensor
    shape: tuple[int, int, int]

    def to(self, device: torch.device | str) -> "VoxelFeatures":
        """The same features on another device."""
        return move_tensors(self, device)


@dataclass(frozen=True)
class TeacherTargets:
    """Targets of one scan, or of a batch of scans.

    Attributes:
        voxels: int64 [V, 4], (scan, rho, phi, z) of the occupied voxels, sorted.
        logits: float [V, classes], one row for each voxel.
        layers: pillar features by teacher layer name.
        voxel_layers: voxel features by teacher layer name; empty unless the cache keeps them and they are asked for.
    """

    voxels: torch.Tensor
    logits: torch.Tensor
    layers: dict[str, PillarFeatures]
    voxel_layers: dict[str, VoxelFeatures] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "TeacherTargets":
        """The same targets on another device."""
        return move_tensors(self, device)

    def without_scans(self) -> "TeacherTargets":
        """Targets of a batch of no scan, of the same layers."""
        return no_rows(self)


def layer_by_layer(
    targets: Sequence[TeacherTargets], make: Callable[..., Layer]
) -> tuple[dict[str, PillarFeatures], dict[str, VoxelFeatures]]:
    """Layers made of those of the same name in some targets: pillar features, and voxel features.

    Args:
        targets: with the same layers.
        make: takes a `Layer` of each of them.
    """

    def made(parts: Iterable[PillarFeatures | VoxelFeatures]) -> Any:
        return make(*(tuple(vars(part).values()) for part in parts))

    first = targets[0]
    pillars = {name: PillarFeatures(*made(one.layers[name] for one in targets)) for name in first.layers}
    voxels = {name: VoxelFeatures(*made(one.voxel_layers[name] for one in targets)) for name in first.voxel_layers}
    return pillars, voxels


def batch_targets(scans: Sequence[TeacherTargets]) -> TeacherTargets:
    """Targets of single scans as those of one batch.

    Raises:
        StoreError: the scans do not have the same layers.
    """
    names = [(list(scan.layers), list(scan.voxel_layers)) for scan in scans]
    if any(found != names[0] for found in names):
        raise StoreError("the scans of one batch have targets of different teacher layers; rebuild the cache")

    def joined(*layers: Layer) -> Layer:
        bins, features, shapes = zip(*layers, strict=True)
        return torch.cat([with_scan(part, row) for row, part in enumerate(bins)]), torch.cat(features), shapes[0]

    voxels, logits, _ = joined(*((scan.voxels, scan.logits, ()) for scan in scans))
    return TeacherTargets(voxels, logits, *layer_by_layer(scans, joined))


def split_targets(targets: TeacherTargets, scans: int) -> list[TeacherTargets]:
    """Targets of a batch as those of its scans, each with the scan's number 0; the inverse of `batch_targets`."""
    if scans == 1:
        return [targets]

    def parts(bins: torch.Tensor, values: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        numbers = torch.arange(scans + 1, device=bins.device)
        ends = torch.searchsorted(bins[:, 0].contiguous(), numbers).tolist()
        return [(with_scan(bins[start:end], 0), values[start:end]) for start, end in pairwise(ends)]

    logits = parts(targets.voxels, targets.logits)
    pillars = {name: parts(layer.pillars, layer.features) for name, layer in targets.layers.items()}
    voxels = {name: parts(layer.voxels, layer.features) for name, layer in targets.voxel_layers.items()}
    return [
        TeacherTargets(
            *logits[scan],
            {name: PillarFeatures(*pillars[name][scan], layer.shape) for name, layer in targets.layers.items()},
            {name: VoxelFeatures(*voxels[name][scan], layer.shape) for name, layer in targets.voxel_layers.items()},
        )
        for scan in range(scans)
    ]


def with_scan(bins: torch.Tensor, scan: int) -> torch.Tensor:
    """The same bins, int64 [M, 1 + K], with `scan` in the first column."""
    bins = bins.clone()
    bins[:, 0] = scan
    return bins
