"""Batch norm whose statistics are those of all processes together, on any device.

PyTorch's `SyncBatchNorm` has kernels for CUDA only; `SharedBatchNorm` does the same with plain operations elsewhere.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from common.training.processes import Processes
from common.training.small_batches import TOO_FEW_VALUES


class NormalisedTogether(torch.autograd.Function):
    """Normalise by the mean and variance of the batch over all processes (Ioffe and Szegedy 2015, algorithm 1).

    Sums are taken in float64. In the backward pass the two sums over the batch, of the gradient and of its product
    with the normalised values, are taken over all processes as well.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float, processes: Processes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = values.double()
        number = wide.new_full((values.shape[1],), values.numel() // values.shape[1])
        entries = all_but_channels(values)
        sums = processes.sum(torch.stack((number, wide.sum(entries), wide.square().sum(entries))))
        count, mean = sums[0, 0], sums[1] / sums[0]
        if count < 2:
            raise ValueError(f"{TOO_FEW_VALUES} in all processes together")
        variance = (sums[2] / sums[0] - mean.square()).clamp(min=0.0)
        ctx.processes = processes
        ctx.save_for_backward(values, weight, mean, (variance + epsilon).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        in_format = (mean.to(weight.dtype), variance.to(weight.dtype), weight, bias)
        return functional.batch_norm(values, *in_format, training=False, eps=epsilon), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        values, weight, mean, inverse_deviation, count = ctx.saved_tensors
        normalised = values.to(weight.dtype) - along_channels(mean.to(weight.dtype), values)
        normalised *= along_channels(inverse_deviation.to(weight.dtype), values)
        grad, entries = grad.to(weight.dtype), all_but_channels(values)
        own = torch.stack((grad.double().sum(entries), (grad * normalised).double().sum(entries)))
        of_mean, of_deviation = (ctx.processes.sum(own) / count).to(weight.dtype)
        grad_values = grad - along_channels(of_mean, values) - normalised * along_channels(of_deviation, values)
        grad_values *= along_channels(weight * inverse_deviation.to(weight.dtype), values)
        # Those of weight and bias are of this process's part: like all gradients they are added up afterwards.
        return grad_values.to(values.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


class SharedBatchNorm(nn.Module):
    """Takes the place of an affine batch norm: with its parameters, running statistics and names in a state dict."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, norm: _BatchNorm, processes: Processes) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)
        assert norm.momentum is not None, "running statistics are moving averages here"
        self.momentum, self.eps, self.processes = norm.momentum, norm.eps, processes
        self.training = norm.training

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """float [N, C, ...] to the same shape; N may be 0 in some of the processes."""
        if not self.training:
            statistics = (self.running_mean, self.running_var)
            return functional.batch_norm(values, *statistics, self.weight, self.bias, training=False, eps=self.eps)
        normalised: torch.Tensor
        normalised, mean, variance, count = NormalisedTogether.apply(
            values, self.weight, self.bias, self.eps, self.processes
        )
        with torch.no_grad():
            unbiased = variance * (count / (count - 1.0))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        return normalised


def all_but_channels(values: torch.Tensor) -> list[int]:
    """Dimensions that a batch norm takes statistics over."""
    return [0, *range(2, values.dim())]


def along_channels(numbers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """float [C] in a shape that broadcasts along the channels of [N, C, ...]."""
    return numbers.view(-1, *[1] * (values.dim() - 2))


def share_batch_norm(network: nn.Module, processes: Processes) -> None:
    """Let every batch norm inside a network, in place, take its statistics over all processes."""
    if processes.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SharedBatchNorm(child, processes))
