"""The supervised loss of PolarNet: weighted cross entropy and Lovasz-Softmax on labelled voxels."""

import torch
from torch.nn import functional

from common.training.processes import ALONE, Processes

UNLABELLED_ERROR = -1.0
"""In the place of the errors of voxels without a label: below all others, which are 0 to 1."""


def segmentation_terms(
    voxel_logits: torch.Tensor, voxel_labels: torch.Tensor, class_weights: torch.Tensor, processes: Processes = ALONE
) -> dict[str, torch.Tensor]:
    """Both parts of the segmentation loss, over all labelled voxels of the batch at once.

    Where several processes hold a part of the batch each, both are those of the whole: the cross entropy is a mean of
    means, and every process sorts the gathered probabilities of all for the Lovasz loss.

    Args:
        voxel_logits: float [V, classes].
        voxel_labels: int64 [V], 0 = unlabelled: such voxels do not count.
        class_weights: float [classes], weight of each class in the cross entropy.
        processes: that train together.

    Returns:
        scalars `cross_entropy` and `lovasz`. Without a labelled voxel both are zeros that still carry a gradient.
    """
    weights = class_weights.to(voxel_logits.dtype)
    total = functional.cross_entropy(voxel_logits, voxel_labels, weight=weights, ignore_index=0, reduction="sum")
    weight = (weights[voxel_labels] * (voxel_labels != 0)).sum()
    cross_entropy = total / torch.where(weight > 0, weight, 1.0)
    return {
        "cross_entropy": processes.mean(cross_entropy, weight),
        "lovasz": lovasz_softmax(processes.rows(voxel_logits.softmax(dim=1)), processes.rows(voxel_labels)),
    }


def lovasz_softmax(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz-Softmax loss (Berman et al., CVPR 2018, equations 8, 9 and 11), averaged over the classes present.

    For each class the errors |[label = class] - probability| are sorted in descending order and weighed by the
    increments of the Jaccard loss, which is the loss's convex extension from sets of wrong predictions to errors.
    Voxels without a label come last, where all increments are 0. No size depends on the labels: on a GPU that would
    be waited for.

    Args:
        probabilities: float [N, classes].
        labels: int64 [N], 0 = unlabelled: such rows do not count.

    Returns:
        a scalar; 0 without a labelled row.
    """
    if not len(labels):
        return probabilities.sum()
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    foreground = labels[None, :] == classes[:, None]
    errors = (foreground.to(probabilities.dtype) - probabilities.t()[1:]).abs()
    errors, order = errors.masked_fill(labels == 0, UNLABELLED_ERROR).sort(dim=1, descending=True)
    foreground = foreground.gather(1, order)
    present = foreground.any(dim=1)
    loss_of_class = (errors * jaccard_increments(foreground, errors.dtype)).sum(dim=1)
    return torch.where(present, loss_of_class, 0.0).sum() / present.sum().clamp(min=1)


def jaccard_increments(foreground: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """How much the Jaccard loss of each class grows when one more voxel is wrong (algorithm 1 of the paper).

    Args:
        foreground: bool [classes, N], whether the voxel belongs to the class, ordered by descending error.
        dtype: of the result; the voxels themselves are counted in integers.

    Returns:
        float [classes, N].
    """
    found = foreground.cumsum(dim=1)
    total = found[:, -1:]
    wrong = torch.arange(1, foreground.shape[1] + 1, device=foreground.device) - found
    # A class without any voxel has a loss of its own, which is not asked for; it must not be NaN.
    jaccard_loss = 1.0 - (total - found).to(dtype) / (total + wrong).clamp(min=1).to(dtype)
    return torch.diff(jaccard_loss, dim=1, prepend=jaccard_loss.new_zeros(len(foreground), 1))
