"""Measures of how far targets are from what the live teacher says about the same cloud."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import kl_div

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.targets.transport import linear_index
from common.training.predictor import most_likely_class

TEMPERATURE = 10.0
"""Of the logits in the divergence; the inverse of the distillation's scale 0.1."""

BORDER_DISTANCES = (8, 16, 32)
"""Azimuth bins from the border at which agreement is looked at apart."""

CUT_DISTANCES = (1, 2, 4, 8)
"""Likewise from the cuts of a mixed scan, where all of the difference is near."""


class LayerAgreement(NamedTuple):
    """One layer of targets against the live teacher's.

    Attributes:
        cosine: of the features over the pillars that both have, each side centred by its own channel means.
        relative_l2: |targets - live| / |live| over all pillars of either, absent ones as zeros, as a student sees them.
        reached: share of the live teacher's pillars that the targets have.
    """

    cosine: float
    relative_l2: float
    reached: float


class PointAgreement(NamedTuple):
    """Logits of some points against the live teacher's, and both against the labels; NaN where there are none.

    Attributes:
        argmax: share of points whose most likely class is the same; "unlabelled" is never an answer.
        divergence: KL(live, targets) at temperature 10, nats, mean over points.
        divergence_share: of the divergence summed over all points.
        right: share of the points in labelled voxels whose most likely class is their voxel's label.
        live_right: the same of the live teacher.
    """

    argmax: float
    divergence: float
    divergence_share: float
    right: float
    live_right: float


class Agreement(NamedTuple):
    """Targets against the live teacher's on the same cloud: of all points, by teacher layer, and by place.

    Places are distances of points from where targets are expected to differ, by name, see `BORDER_DISTANCES`.
    """

    argmax: float
    divergence: float
    layers: dict[str, LayerAgreement]
    places: dict[str, PointAgreement]


def agreement(
    targets: TeacherTargets, live: TeacherTargets, cloud: ScanBatch, cuts: Sequence[int] | None = None
) -> Agreement:
    """Compare targets with the live teacher's, row by row, on the cloud of one scan.

    Places are distances from the cuts of a mixed scan, given as the first azimuth bin behind each; without cuts, from
    the border phi = +-pi, where the live teacher's convolutions end.
    """
    ours, theirs = targets.logits.double(), live.logits.double()
    log_ours, log_theirs = (ours / TEMPERATURE).log_softmax(dim=1), (theirs / TEMPERATURE).log_softmax(dim=1)
    divergence = kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(dim=1)[cloud.point_voxel]
    carried_class, live_class = (most_likely_class(logits)[cloud.point_voxel] for logits in (ours, theirs))
    labels, same = cloud.voxel_labels[cloud.point_voxel], (carried_class == live_class).double()
    circle = cloud.grid_shape[1] - 1
    distance = distance_of_points(cloud, [0, circle] if cuts is None else cuts)
    places = {}
    for first, last in pairwise((0, *(BORDER_DISTANCES if cuts is None else CUT_DISTANCES), circle)):
        inside = (distance >= first) & (distance < last)
        labelled = inside & (labels > 0)
        places[f"from {first} bins on" if last == circle else f"{first} to {last} bins"] = PointAgreement(
            float(same[inside].mean()),
            float(divergence[inside].mean()),
            float(divergence[inside].sum() / divergence.sum().clamp_min(1e-30)),
            float((carried_class == labels)[labelled].double().mean()),
            float((live_class == labels)[labelled].double().mean()),
        )
    layers = {name: layer_agreement(targets.layers[name], layer) for name, layer in live.layers.items()}
    return Agreement(float(same.mean()), float(divergence.mean()), layers, places)


def distance_of_points(cloud: ScanBatch, cuts: Sequence[int]) -> torch.Tensor:
    """Azimuth bins between each point and the nearest cut, never across phi = +-pi; 0 beside a cut: int64 [N].

    Cuts are given as the first azimuth bin behind each.
    """
    bins, starts = torch.arange(cloud.grid_shape[1])[:, None], torch.tensor(cuts)
    # The last bin holds phi = pi only, a place that belongs to the bin before.
    bins = bins.clamp(max=cloud.grid_shape[1] - 2)
    nearest = torch.where(bins >= starts, bins - starts, starts - 1 - bins).amin(dim=1)
    return nearest[cloud.voxels[cloud.point_voxel, 2]]


def layer_agreement(targets: PillarFeatures, live: PillarFeatures) -> LayerAgreement:
    """Compare one layer; NaN where the two share no pillar, or features do not vary."""
    ours, theirs = linear_index(targets.pillars, targets.shape), linear_index(live.pillars, live.shape)
    rows, known = torch.isin(ours, theirs), torch.isin(theirs, ours)
    left, right = targets.features[rows].double(), live.features[known].double()
    # Pillars of one side only stand against zeros.
    missed = targets.features[~rows].double().square().sum() + live.features[~known].double().square().sum()
    error = ((left - right).square().sum() + missed).sqrt()
    left_centred, right_centred = left - left.mean(dim=0), right - right.mean(dim=0)
    norms = torch.linalg.vector_norm(left_centred) * torch.linalg.vector_norm(right_centred)
    return LayerAgreement(
        float((left_centred * right_centred).sum() / norms),
        float(error / torch.linalg.vector_norm(live.features.double())),
        float(known.double().mean()),
    )


def mean(agreements: Sequence[Agreement]) -> Agreement:
    """Mean of every number over agreements; by place, over those that have points, or labels, there."""
    first = agreements[0]
    argmax, divergence = np.mean([one[:2] for one in agreements], axis=0).tolist()
    layers = {name: np.mean([one.layers[name] for one in agreements], axis=0).tolist() for name in first.layers}
    places = {}
    for name in first.places:
        known = np.ma.masked_invalid([one.places[name] for one in agreements])
        places[name] = PointAgreement(*known.mean(axis=0).filled(np.nan).tolist())
    return Agreement(argmax, divergence, {name: LayerAgreement(*of_layer) for name, of_layer in layers.items()}, places)
