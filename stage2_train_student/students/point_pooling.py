"""The widest layer of the point network and its maximum over pillars in one, so that its output never exists whole."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from common.scans.scatter import winning_rows

CHUNK_ROWS = 8192
"""Points at a time: their features, 16 MB at full size, stay near the processor and fit any gap of the heap."""


class PooledLinear(torch.autograd.Function):
    """`pooled_linear` with its gradient; remembers the winning point of each pillar and channel."""

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, segment: torch.Tensor, segments: int
    ) -> torch.Tensor:
        pooled, winners = [], []
        for start, end in segment_chunks(segment, segments):
            values = functional.linear(features[start:end], weight, bias)
            local = segment[start:end] - segment[start]
            largest = values.new_full((int(local[-1]) + 1, values.shape[1]), -torch.inf)
            largest.scatter_reduce_(0, local[:, None].expand_as(values), values, "amax")
            pooled.append(largest)
            if any(ctx.needs_input_grad):
                winners.append(winning_rows(values, local, largest) + start)
        if winners:
            ctx.save_for_backward(features, weight, segment, torch.cat(winners))
        return torch.cat(pooled)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight, segment, winner = ctx.saved_tensors
        grad_features = torch.empty_like(features)
        grad_weight = torch.zeros_like(weight)
        in_format = weight.to(grad.dtype)
        for start, end in segment_chunks(segment, len(grad)):
            first, last = int(segment[start]), int(segment[end - 1]) + 1
            values = grad.new_zeros(end - start, grad.shape[1])
            values.scatter_(0, (winner[first:last] - start).long(), grad[first:last])
            grad_features[start:end] = values @ in_format
            grad_weight += values.t() @ features[start:end].to(grad.dtype)
        return grad_features, grad_weight, grad.sum(dim=0, dtype=weight.dtype), None, None


def pooled_linear(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, segment: torch.Tensor, segments: int
) -> torch.Tensor:
    """`segment_max(linear(features, weight, bias), segment, segments)` without the linear layer's output.

    Args:
        features: float [N, K], in the order of their segments.
        weight: float32 [C, K].
        bias: float32 [C].
        segment: int64 [N], ascending, in 0..segments-1. Every segment must have at least one row.
        segments: number of segments M.

    Returns:
        float [M, C].
    """
    pooled: torch.Tensor = PooledLinear.apply(features, weight, bias, segment, segments)
    return pooled


def segment_chunks(segment: torch.Tensor, segments: int, rows: int = CHUNK_ROWS) -> Iterator[tuple[int, int]]:
    """First row, and row after the last, of chunks of about `rows` rows that divide no segment."""
    starts = torch.searchsorted(segment, torch.arange(segments, device=segment.device))
    cuts = starts[torch.searchsorted(starts, torch.arange(0, int(starts[-1]) + 1, rows, device=segment.device))]
    bounds = [*torch.unique(cuts).tolist(), len(segment)]
    return pairwise(bounds)
