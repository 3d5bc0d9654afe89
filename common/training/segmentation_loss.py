"""The supervised loss of PolarNet: weighted cross entropy and Lovasz-Softmax on labelled voxels."""

import torch
from torch.nn import functional

from common.training.processes import ALONE, Processes


def segmentation_terms(
    voxel_logits: torch.Tensor,
    voxel_labels: torch.Tensor,
    class_weights: torch.Tensor,
    processes: Processes = ALONE,
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
    labelled = voxel_labels != 0
    logits, labels = voxel_logits[labelled], voxel_labels[labelled]
    all_labels = processes.rows(labels)
    if not len(all_labels):
        zero = voxel_logits.sum() * 0.0
        return {"cross_entropy": zero, "lovasz": zero}
    weights = class_weights.to(logits.dtype)
    cross_entropy = functional.cross_entropy(logits, labels, weight=weights)
    return {
        "cross_entropy": processes.mean(cross_entropy, weights[labels].sum()),
        "lovasz": lovasz_softmax(processes.rows(logits.softmax(dim=1)), all_labels),
    }


def segmentation_loss(
    voxel_logits: torch.Tensor, voxel_labels: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    """Sum of `segmentation_terms`, a scalar."""
    terms = segmentation_terms(voxel_logits, voxel_labels, class_weights)
    return terms["cross_entropy"] + terms["lovasz"]


def lovasz_softmax(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz-Softmax loss (Berman et al., CVPR 2018, equations 8, 9 and 11), averaged over the classes present.

    For each class the errors |[label = class] - probability| are sorted in descending order and weighed by the
    increments of the Jaccard loss, which is the loss's convex extension from sets of wrong predictions to errors.

    Args:
        probabilities: float [N, classes], N > 0.
        labels: int64 [N].

    Returns:
        a scalar.
    """
    present = torch.bincount(labels, minlength=probabilities.shape[1]).nonzero().squeeze(1)
    foreground = labels[None, :] == present[:, None]
    errors = (foreground.to(probabilities.dtype) - probabilities.t()[present]).abs()
    errors, order = errors.sort(dim=1, descending=True)
    return (errors * jaccard_increments(foreground.gather(1, order), errors.dtype)).sum(dim=1).mean()


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
    jaccard_loss = 1.0 - (total - found).to(dtype) / (total + wrong).to(dtype)
    return torch.diff(jaccard_loss, dim=1, prepend=jaccard_loss.new_zeros(len(foreground), 1))
