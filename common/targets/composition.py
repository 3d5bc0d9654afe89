"""Targets of a rotated cloud from the two anchors on both sides of it, each used away from its own border.

A grid has a border at phi = +-pi, across which no convolution of the teacher sees. A rotation moves that border into
the scene. Of an anchor's targets, the sector that crossed it arrives with its cells out of step by the one bin in which
the circle differs from the grid, and the places next to it were seen with nothing on their other side. The anchor on
the other side of the wanted rotation had its border elsewhere: that sector arrives from there whole and in step. One
difference to a live teacher remains: at the new cloud's own border it sees one side only, the anchors saw both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from common.base.errors import SettingsError
from common.scans.polar_grid import ALIGNED_BINS
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import Layer, TeacherTargets, layer_by_layer
from common.targets.transport import (
    check_same_points,
    layer_stride,
    mean_over_points,
    merged,
    rotate_by_bins,
    rotated_sites,
)

BORDER_BINS = 32
"""Azimuth bins beyond a moved border that the other anchor serves too, where the anchors are far enough apart."""


class Anchor(NamedTuple):
    """Targets of a dumped view, and what takes them to the wanted one.

    Attributes:
        targets: of `cloud`.
        cloud: what the teacher saw.
        bins: azimuth bins to rotate by, counter-clockwise; a multiple of `ALIGNED_BINS`.
    """

    targets: TeacherTargets
    cloud: ScanBatch
    bins: int


def anchored_targets(nearest: Anchor, other: Anchor | None, target: ScanBatch) -> TeacherTargets:
    """Targets of a cloud from its anchors, all of them in step with the cloud's own cells.

    Args:
        nearest: the nearest anchor.
        other: the anchor on the other side, rotated against the sense of `nearest`; None where there is none, and then
            the crossed sector comes from `nearest` too, out of step.
        target: the same points in the same order, rotated and voxelised on the same grid.

    Raises:
        SettingsError: a layer's cells are not kept whole, or both anchors lie on the same side.
        StoreError: an anchor's targets are not those of its cloud, or the clouds are not the same points.
    """
    if other is None or not nearest.bins:
        return rotate_by_bins(nearest.targets, nearest.bins, nearest.cloud, target)
    if nearest.bins * other.bins >= 0:
        raise SettingsError(
            f"the anchors are rotated by {nearest.bins} and {other.bins} bins; they must lie on both sides "
            "of the wanted view"
        )
    for anchor in (nearest, other):
        check_same_points(anchor.targets, anchor.cloud, target)
    served = other_sector(nearest.bins, other.bins, target.grid_shape[1])
    both = (nearest, other)
    layers = layer_by_layer([one.targets for one in both], lambda *pair: composed_layer(pair, both, served))
    return TeacherTargets(target.voxels, composed_logits(nearest, other, served, target), *layers)


def other_sector(bins: int, other_bins: int, azimuth_bins: int) -> range:
    """Azimuth bins of the new cloud that the other anchor serves: what crossed the border, and what lies next to it.

    The borders of both anchors lie `azimuth_bins` - 1 - |bins - other_bins| bins apart, on the side where nothing
    crossed. Less than half of that is taken, so that the other anchor's own border stays outside.

    Args:
        bins: rotation from the nearest anchor, not 0.
        other_bins: rotation from the other one, of the other sign.
        azimuth_bins: of the grid.

    Returns:
        whole cells of every layer, apart from the last one, which the grid's end may cut.
    """
    circle = azimuth_bins - 1
    apart = circle - abs(bins - other_bins)
    beyond = min(BORDER_BINS, apart // 2 // ALIGNED_BINS * ALIGNED_BINS)
    if bins > 0:
        return range(bins + beyond)
    return range((circle + bins - beyond) // ALIGNED_BINS * ALIGNED_BINS, azimuth_bins)


def composed_layer(pair: Sequence[Layer], anchors: Sequence[Anchor], served: range) -> Layer:
    """One layer from both anchors, the sites of each rotated and then kept where it serves, sorted.

    Args:
        pair: the layer of each anchor.
        anchors: the nearest one, then the other.
        served: azimuth bins of the new cloud that the other one serves.
    """
    azimuth, shape = anchors[0].cloud.grid_shape[1], pair[0][2]
    stride = layer_stride(azimuth, shape[1])
    sites, features = [], []
    for (old, values, _), anchor in zip(pair, anchors, strict=True):
        moved = rotated_sites(old, shape, anchor.bins, azimuth)
        kept = is_within(moved[:, 2] * stride, served) == (anchor is anchors[1])
        sites.append(moved[kept])
        features.append(values[kept])
    return *merged(torch.cat(sites), torch.cat(features), shape), shape


def composed_logits(nearest: Anchor, other: Anchor, served: range, target: ScanBatch) -> torch.Tensor:
    """Logits of each new voxel: the mean over its points' logits, each from the anchor that serves the point.

    Returns:
        float [V', classes], of `target.voxels`.
    """
    nearest_logits, other_logits = (anchor.targets.logits[anchor.cloud.point_voxel] for anchor in (nearest, other))
    crossed = is_within(target.voxels[:, 2], served)[target.point_voxel]
    logits = torch.where(crossed[:, None], other_logits, nearest_logits)
    return mean_over_points(logits.double(), target).to(logits.dtype)


def is_within(bins: torch.Tensor, served: range) -> torch.Tensor:
    """Which azimuth bins lie in a range of them: int64 [N] to bool [N]."""
    return (bins >= served.start) & (bins < served.stop)
