"""Cached targets moved with the scene: exactly aligned rotations as a shift of sites, anything else through points.

Azimuth bins are 2 pi / (A - 1) wide on A bins, so the last one holds phi = pi only, the same place as the lower border
of bin 0. Hence a rotation by m whole bins moves bin k to (k + m) mod (A - 1). At stride s, a divisor of m and A, sites
move by m / s modulo A / s: a plain shift, in which no two sites meet. Only the sector that crosses phi = pi arrives
with its cells out of step with the live teacher's, by the one bin in which A - 1 differs from A;
`common.targets.composition` takes it from another dumped view. Multiples of `ALIGNED_BINS` come closest to the live
teacher: they also keep the cells of the layer whole that is not distilled itself but feeds those that are. Flips do not
transport: the teacher is not equivariant, and a mirrored grid has other cells.

Targets stay the teacher's answer for the cloud it saw. It also reads x, y and phi as they are, so transported targets
are approximate; the command `consistency` measures how good they are.
"""

import torch

from common.base.errors import SettingsError, StoreError
from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from common.targets.teacher_targets import Layer, TeacherTargets, layer_by_layer


def rotate_by_bins(targets: TeacherTargets, bins: int, source: ScanBatch, target: ScanBatch) -> TeacherTargets:
    """Targets after a rotation about z by whole azimuth bins: the sites of every layer shifted, with no holes.

    Logits are carried by points, not shifted, because the voxels must be those of the student's own voxelisation:
    rounding moves a few points that lie on a border into a neighbouring voxel.

    Args:
        targets: of the cloud `source`.
        bins: azimuth bins to rotate by, counter-clockwise; a multiple of every layer's stride.
        source: the cloud that the teacher saw.
        target: the same points in the same order, rotated and voxelised on the same grid.

    Raises:
        SettingsError: a layer's cells are not kept whole.
        StoreError: the targets are not those of `source`, or the clouds are not the same points.
    """
    check_same_points(targets, source, target)
    azimuth = source.grid_shape[1]

    def rotated(layer: Layer) -> Layer:
        sites, features, shape = layer
        return *merged(rotated_sites(sites, shape, bins, azimuth), features, shape), shape

    logits = carried_logits(targets.logits, source, target)
    return TeacherTargets(target.voxels, logits, *layer_by_layer([targets], rotated))


def rotated_sites(sites: torch.Tensor, shape: tuple[int, ...], bins: int, azimuth_bins: int) -> torch.Tensor:
    """Sites after a rotation by whole azimuth bins, in the order of the old ones.

    Args:
        sites: int64 [M, 1 + K], (scan, rho, phi, ...) at the layer's resolution.
        shape: K sizes of the layer.
        bins: azimuth bins of the grid to rotate by, counter-clockwise.
        azimuth_bins: of the grid.

    Raises:
        SettingsError: `bins` is not a multiple of the layer's stride.
    """
    stride = layer_stride(azimuth_bins, shape[1])
    if bins % stride:
        raise SettingsError(
            f"a rotation by {bins} azimuth bins cuts the cells of a layer of stride {stride}; rotate by a multiple of "
            f"{stride}, or carry the targets through points"
        )
    moved = sites.clone()
    moved[:, 2] = (sites[:, 2] + bins // stride) % (azimuth_bins - 1 if stride == 1 else shape[1])
    return moved


def carry_through_points(targets: TeacherTargets, source: ScanBatch, target: ScanBatch) -> TeacherTargets:
    """Targets after any transform of the cloud: sites go where their points go.

    Of the features that meet in a cell each channel's maximum stays, as in the reduction to pillars; of logits, the
    mean over the cell's points. A site without points is lost: strided convolutions light up such sites too, so layers
    come out with holes.

    Args:
        targets: of the cloud `source`.
        source: the cloud that the teacher saw.
        target: the same points in the same order, moved and voxelised on the same grid.

    Raises:
        StoreError: the targets are not those of `source`, or the clouds are not the same points.
    """
    check_same_points(targets, source, target)
    layers = layer_by_layer([targets], lambda layer: carried_layer(layer, source, target))
    return TeacherTargets(target.voxels, carried_logits(targets.logits, source, target), *layers)


def carried_logits(logits: torch.Tensor, source: ScanBatch, target: ScanBatch) -> torch.Tensor:
    """Logits of each new voxel: the mean, over its points, of the logits of the voxel that each point came from.

    The mean rather than the majority's: it needs no rule for ties, each source counts by its number of points, and
    where all points come from one voxel it is that voxel's logits to the bit, since it is summed in float64.

    Args:
        logits: float [V, classes], of `source.voxels`.
        source: the cloud that the teacher saw.
        target: the same points in the same order, moved.

    Returns:
        float [V', classes], of `target.voxels`.
    """
    return mean_over_points(logits.double().index_select(0, source.point_voxel), target).to(logits.dtype)


def mean_over_points(values: torch.Tensor, cloud: ScanBatch) -> torch.Tensor:
    """Mean of each voxel's points: float64 [N, C] to float64 [V, C]."""
    total = values.new_zeros(len(cloud.voxels), values.shape[1]).index_add_(0, cloud.point_voxel, values)
    return total / torch.bincount(cloud.point_voxel, minlength=len(cloud.voxels))[:, None]


def carried_layer(layer: Layer, source: ScanBatch, target: ScanBatch) -> Layer:
    """One layer carried by points, see `carry_through_points`; its sites are sorted."""
    sites, features, shape = layer
    old_cells, new_cells = cells_of_points(source, shape), cells_of_points(target, shape)
    known, wanted = linear_index(sites, shape), linear_index(old_cells, shape)
    row = torch.searchsorted(known, wanted).clamp(max=max(len(known) - 1, 0))
    found = known[row] == wanted if len(known) else torch.zeros_like(wanted, dtype=torch.bool)
    new_cells, row = new_cells[found], row[found]
    # Many points take the same way from an old cell to a new one; each way is needed once.
    ways, order = torch.sort(linear_index(new_cells, shape) * max(len(sites), 1) + row, stable=True)
    once = order[starts_of_runs(ways)]
    return *merged(new_cells[once], features[row[once]], shape), shape


def starts_of_runs(ordered: torch.Tensor) -> torch.Tensor:
    """Which sorted numbers differ from the one before, bool [N]."""
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def cells_of_points(cloud: ScanBatch, shape: tuple[int, ...]) -> torch.Tensor:
    """Cell of a layer that holds each point, int64 [N, 1 + K] for a layer of K sizes."""
    strides = [layer_stride(size, layer) for size, layer in zip(cloud.grid_shape, shape, strict=False)]
    divisor = torch.tensor([1, *strides], device=cloud.voxels.device)
    cells = torch.div(cloud.voxels[:, : 1 + len(shape)], divisor, rounding_mode="floor")
    return cells[cloud.point_voxel]


def merged(sites: torch.Tensor, features: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sites in order, each once; features of equal sites are reduced to their maximum."""
    linear = linear_index(sites, shape)
    order = torch.argsort(linear, stable=True)
    ordered, sites, features = linear[order], sites[order], features[order]
    first = starts_of_runs(ordered)
    if bool(first.all()):
        return sites, features
    return sites[first], segment_max(features, torch.cumsum(first, 0) - 1, int(first.sum()))


def linear_index(sites: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """One number for each site, in the order of the rows: int64 [M, 1 + K] to int64 [M]."""
    linear = sites[:, 0]
    for column, size in enumerate(shape, start=1):
        linear = linear * size + sites[:, column]
    return linear


def layer_stride(grid_bins: int, layer_bins: int) -> int:
    """Bins of the grid in one cell of a layer, along one axis.

    Raises:
        SettingsError: they are not whole cells.
    """
    if grid_bins % layer_bins:
        raise SettingsError(
            f"a layer of {layer_bins} bins does not divide the grid's {grid_bins}; targets on it cannot be transported"
        )
    return grid_bins // layer_bins


def check_same_points(targets: TeacherTargets, source: ScanBatch, target: ScanBatch) -> None:
    """Refuse targets of another cloud, and two clouds that are not the same points.

    Raises:
        StoreError: they are.
    """
    if not torch.equal(targets.voxels, source.voxels):
        raise StoreError("the targets belong to another cloud; dump this scan again")
    if len(source.point_voxel) != len(target.point_voxel):
        raise StoreError(
            f"targets of a cloud of {len(source.point_voxel)} points cannot be carried by one of "
            f"{len(target.point_voxel)}; transport them before points are dropped or added"
        )
