"""PolarNet's bird's-eye-view U-Net: convolutions that wrap around the azimuth, DropBlock after each step up.

The module names are those of published PolarNet checkpoints (`BEV_model.network.*`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PUBLISHED_WIDTH = 64
"""Channels of the published U-Net's first block; all others are multiples of it."""

STUDENT_LAYERS = {"x2": 128, "x4": 512, "x_up5": 256, "x_up3": 64, "x_up2": 64}
"""Channels of the layers that a teacher can be compared with, at the published width, by their published names."""

DROPPED_BLOCK = 7


class WrapAzimuth(torch.autograd.Function):
    """Concatenate maps along channels and repeat the first and last azimuth bin on the opposite side, in one copy."""

    @staticmethod
    def forward(ctx: Any, *maps: torch.Tensor) -> torch.Tensor:
        ctx.channels = [m.shape[1] for m in maps]
        return wrapped(maps)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gradients = []
        for part in grad.split(ctx.channels, dim=1):
            inner = part[..., 1:-1].clone(memory_format=torch.preserve_format)
            inner[..., -1] += part[..., 0]
            inner[..., 0] += part[..., -1]
            gradients.append(inner)
        return tuple(gradients)


def wrapped(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `wrap_azimuth` returns, without a way back for gradients."""
    if torch.compiler.is_exporting():
        # What is written in place would become scatters in the exported graph.
        joined = torch.cat(list(maps), dim=1)
        return torch.cat((joined[..., -1:], joined, joined[..., :1]), dim=-1)
    first, channels = maps[0], [m.shape[1] for m in maps]
    scans, _, radial, azimuth = first.shape
    shape, channels_last = (scans, sum(channels), radial, azimuth + 2), torch.channels_last
    layout = channels_last if first.is_contiguous(memory_format=channels_last) else torch.contiguous_format
    out = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)
    for part, source in zip(out.split(channels, dim=1), maps, strict=True):
        part[..., 1:-1] = source
    out[..., 0] = out[..., -2]
    out[..., -1] = out[..., 1]
    return out


def wrap_azimuth(*maps: torch.Tensor) -> torch.Tensor:
    """Maps [B, C_i, R, P], concatenated along channels and circularly padded: [B, sum of C_i, R, P + 2]."""
    # Without a gradient torch.compile hands an autograd function's forward the first of its arguments only.
    needed = torch.is_grad_enabled() and any(part.requires_grad for part in maps)
    return WrapAzimuth.apply(*maps) if needed else wrapped(maps)


class DoubleConvolution(nn.Module):
    """Twice: 3x3 convolution, circular along azimuth and zero-padded radially; batch norm; LeakyReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = self.convolution(channels_in, channels)
        self.conv2 = self.convolution(channels, channels)

    @staticmethod
    def convolution(channels_in: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=(1, 0)), nn.BatchNorm2d(channels), nn.LeakyReLU(inplace=True)
        )

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        """Maps [B, C_i, R, P], concatenated along channels, to [B, channels, R, P]."""
        return self.conv2(wrap_azimuth(self.conv1(wrap_azimuth(*maps))))


class InputBlock(nn.Module):
    """Batch norm of the pillar map, then a double convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.BatchNorm2d(channels_in), DoubleConvolution(channels_in, channels))

    def forward(self, pillar_map: torch.Tensor) -> torch.Tensor:
        return self.conv(pillar_map)


class DownBlock(nn.Module):
    """Max pooling by two (sizes round down), then a double convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.mpconv = nn.Sequential(nn.MaxPool2d(2), DoubleConvolution(channels_in, channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.mpconv(features)


class UpBlock(nn.Module):
    """Bilinear upsampling by two, zero-padding to the skip's size, double convolution of both maps, DropBlock."""

    def __init__(self, channels_in: int, channels: int, dropblock: float) -> None:
        super().__init__()
        self.conv = DoubleConvolution(channels_in, channels)
        self.dropblock = dropblock

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        features = self.conv(skip, upsampled(coarse, skip.shape))
        return drop_blocks(features, self.dropblock) if self.training and self.dropblock > 0 else features


def upsampled(coarse: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A map [B, C, R, P] of twice the resolution, padded with zeros to the last two sizes of `shape`."""
    up = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=True)
    radial, azimuth = shape[2] - up.shape[2], shape[3] - up.shape[3]
    if radial or azimuth:
        up = functional.pad(up, (azimuth // 2, azimuth - azimuth // 2, radial // 2, radial - radial // 2))
    return up


def drop_blocks(features: torch.Tensor, probability: float, block: int = DROPPED_BLOCK) -> torch.Tensor:
    """DropBlock (Ghiasi et al., NeurIPS 2018): zero random square regions, the same ones in all channels of a scan.

    Every bin is the centre of a dropped block with probability `probability / block^2`; what is kept is scaled by
    the number of bins over the number of kept bins of the batch, or of this process's part of it.

    Args:
        features: float [B, C, R, P].
        probability: DropBlock's drop probability, 0..1.
        block: side of a block in bins, odd.
    """
    scans, _, radial, azimuth = features.shape
    centres = torch.rand(scans, 1, radial, azimuth, device=features.device) < probability / block**2
    # bfloat16 cannot count: above 256 it has no odd numbers.
    counted = torch.promote_types(features.dtype, torch.float32)
    kept = 1.0 - functional.max_pool2d(centres.to(counted), block, stride=1, padding=block // 2)
    return features * (kept * (kept.numel() / kept.sum().clamp(min=1.0))).to(features.dtype)


class PillarClassifier(nn.Module):
    """The 1x1 convolution that ends the U-Net, evaluated at chosen pillars only."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, pillars: torch.Tensor) -> torch.Tensor:
        """float [K, channels in], rows of the map, to [K, channels out]."""
        return functional.linear(pillars, self.conv.weight.flatten(1), self.conv.bias)


def student_layers(width: int) -> dict[str, int]:
    """Channels of the layers of `STUDENT_LAYERS` in a U-Net whose first block has `width` channels."""
    return {name: channels // PUBLISHED_WIDTH * width for name, channels in STUDENT_LAYERS.items()}


class BirdsEyeUNet(nn.Module):
    """U-Net over the pillar map: encoder w, 2w, 4w, 8w, 8w and decoder 4w, 2w, w, w channels for a width w of 64."""

    def __init__(self, channels_in: int, channels_out: int, dropblock: float, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        w = width
        self.inc = InputBlock(channels_in, w)
        self.down1 = DownBlock(w, 2 * w)
        self.down2 = DownBlock(2 * w, 4 * w)
        self.down3 = DownBlock(4 * w, 8 * w)
        self.down4 = DownBlock(8 * w, 8 * w)
        self.up1 = UpBlock(16 * w, 4 * w, dropblock)
        self.up2 = UpBlock(8 * w, 2 * w, dropblock)
        self.up3 = UpBlock(4 * w, w, dropblock)
        self.up4 = UpBlock(2 * w, w, dropblock)
        self.outc = PillarClassifier(w, channels_out)

    def forward(self, pillar_map: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pillar map [B, C, R, P] to the layers of `STUDENT_LAYERS`; the classifier `outc` is left to the caller."""
        x1 = self.inc(pillar_map)
        layers = self.inner_layers(x1)
        return {**layers, "x_up2": self.up4(layers["x_up3"], x1)}

    def inner_layers(self, x1: torch.Tensor) -> dict[str, torch.Tensor]:
        """The layers between the first block's output and the last block."""
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x_up5 = self.up1(self.down4(x4), x4)
        return {"x2": x2, "x4": x4, "x_up5": x_up5, "x_up3": self.up3(self.up2(x_up5, x3), x2)}


class BirdsEyeModel(nn.Module):
    """Holds the U-Net under the name that it has in published checkpoints."""

    def __init__(self, network: BirdsEyeUNet) -> None:
        super().__init__()
        self.network = network
