"""Training one student in several processes (torchrun): the gradients and statistics of the batch that they share.

A batch's scans are divided among the processes. Each computes the loss of the whole batch: losses that are means over
voxels or scans are put together from sums over all processes, the Lovasz loss from everybody's probabilities
(`common.training.processes`). `DistributedDataParallel` then puts the gradients together while the backward pass is
still under way. With `sync_batch_norm` the batch statistics are shared as well, and the loss curve is that of one
process with the whole batch up to rounding. What is drawn at random is drawn by each process: points of crowded
pillars, dropped blocks and their scale.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from common.training.processes import Processes
from common.training.shared_batch_norm import share_batch_norm


class StudentAndAdapters(nn.Module):
    """What is trained as one module, as `DistributedDataParallel` wants it: the losses are part of its forward pass."""

    def __init__(self, student: nn.Module, distillation: nn.Module) -> None:
        super().__init__()
        self.student, self.distillation = student, distillation

    def forward(self, losses: Callable[..., Any], *arguments: Any) -> Any:
        """What `losses(student, distillation, *arguments)` returns."""
        return losses(self.student, self.distillation, *arguments)


def parallel(
    student: nn.Module, distillation: nn.Module, sync_batch_norm: bool, processes: Processes
) -> DistributedDataParallel | None:
    """Both networks as one that computes with other processes; None where there is one process.

    The networks themselves stay what they are, names of their weights included, but for their batch norms: with
    `sync_batch_norm` these take their statistics over all processes.
    """
    if processes.count == 1:
        return None
    if sync_batch_norm:
        share_batch_norm(student, processes)
        share_batch_norm(distillation, processes)
    both = DistributedDataParallel(StudentAndAdapters(student, distillation))
    if processes.device.type == "cpu":
        both.register_comm_hook(processes, mean_in_order)
    return both


def mean_in_order(
    processes: Processes,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Mean of a bucket of gradients over all processes, added up by rank.

    The order of addition in gloo's own sum depends on where in its bucket a gradient lies, and the buckets are laid
    out anew after the first step: a resumed run of more than two processes would round differently.
    """
    total, *others = processes.gather(bucket.buffer())
    for other in others:
        # Not in place: one of them may be the bucket itself.
        total = total + other
    mean: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    mean.set_result(total / processes.count)
    return mean


def gradients_of(both: DistributedDataParallel | None, last: bool) -> AbstractContextManager[None]:
    """Context of a forward and backward pass; all but the `last` of a step leave gradients where they are."""
    context: AbstractContextManager[None] = nullcontext() if both is None or last else both.no_sync()
    return context


def mean_statistics(both: DistributedDataParallel, processes: Processes) -> None:
    """Give every process the mean of all running statistics, in place: they differ where batch norms are apart."""
    buffers = [buffer for buffer in both.buffers() if buffer.is_floating_point()]
    flat = processes.sum(torch.cat([buffer.flatten() for buffer in buffers])) / processes.count
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
