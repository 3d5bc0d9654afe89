"""3x3 convolutions with a quarter of the products: Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016).

Outputs are found in tiles of 4x4 from windows of 6x6 inputs, by 36 products for each pair of channels instead of 144.
The transforms to and fro are products with small constant matrices (sections 4.1 and 4.3 of the paper), which are
exact up to rounding, and cost in proportion to the channels: it pays where there are many.
"""

import torch
from torch import nn
from torch.nn import functional

TILE, WINDOW = 4, 6

INPUT = (
    *((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0)),
    *((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
)
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
KERNEL = (
    *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
    *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
)

CHUNK_TILES = 192
"""Tiles at a time, about: what is known of them stays near the processor between the three products."""

FEWEST_CHANNELS = 64
"""Fewer, in or out, do not pay for the transforms."""


class WinogradConvolution(nn.Module):
    """A 3x3 convolution and its activation, zero-padded radially, of one map that is wrapped along azimuth already.

    Made of a block of both, the convolution with a bias; the block stays as it is.
    """

    input_transform: torch.Tensor
    output_transform: torch.Tensor

    def __init__(self, block: nn.Sequential) -> None:
        super().__init__()
        convolution, self.activation = block
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        assert (convolution.kernel_size, convolution.padding, convolution.stride) == ((3, 3), (1, 0), (1, 1))
        kernel, precision = torch.tensor(KERNEL, dtype=torch.float64), convolution.weight.dtype
        spread = torch.einsum("ai,ocij,bj->abco", kernel, convolution.weight.detach().double(), kernel)
        self.weight = nn.Parameter(spread.flatten(0, 1).to(precision).contiguous())
        self.bias = nn.Parameter(convolution.bias.detach().clone())
        for name, matrix in (("input", INPUT), ("output", OUTPUT)):
            one_axis = torch.tensor(matrix, dtype=precision)
            self.register_buffer(f"{name}_transform", torch.kron(one_axis, one_axis))

    def forward(self, wrapped: torch.Tensor) -> torch.Tensor:
        """A map [1, C, R, P + 2] to [1, channels out, R, P], both in channels-last layout."""
        radial, azimuth = wrapped.shape[2], wrapped.shape[3] - 2
        cells = functional.pad(wrapped[0].permute(1, 2, 0), (0, 0, 0, -azimuth % TILE, 1, 1 + -radial % TILE))
        windows = cells.unfold(0, WINDOW, TILE).unfold(1, WINDOW, TILE).permute(3, 4, 0, 1, 2)
        down, across = windows.shape[2:4]
        out = cells.new_empty(down, TILE, across, TILE, self.weight.shape[2])
        rows = max(1, CHUNK_TILES // across)
        for chunk, target in zip(windows.split(rows, dim=2), out.split(rows), strict=True):
            target.copy_(self.tiles(chunk).permute(2, 0, 3, 1, 4))
        out = out.view(down * TILE, across * TILE, -1)[:radial, :azimuth]
        activated: torch.Tensor = self.activation(out + self.bias)
        return activated.permute(2, 0, 1)[None]

    def tiles(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows [6, 6, rows, columns, C] to tiles [4, 4, rows, columns, channels out]."""
        rows, columns, channels = windows.shape[2:]
        spread = torch.mm(self.input_transform, windows.reshape(WINDOW**2, -1))
        products = torch.bmm(spread.view(WINDOW**2, rows * columns, channels), self.weight)
        return torch.mm(self.output_transform, products.flatten(1)).view(TILE, TILE, rows, columns, -1)


def with_fewer_products(network: nn.Module) -> None:
    """Replace, in a U-Net whose batch norms are fused, the convolutions for which that pays."""
    for name, block in list(network.named_children()):
        if isinstance(block, nn.Sequential) and isinstance(block[0], nn.Conv2d) and pays(block[0]):
            setattr(network, name, WinogradConvolution(block))
        else:
            with_fewer_products(block)


def pays(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3 and has channels enough."""
    channels = min(convolution.in_channels, convolution.out_channels)
    return convolution.kernel_size == (3, 3) and channels >= FEWEST_CHANNELS
