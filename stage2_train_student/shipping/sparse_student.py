"""PolarNet for predictions of one scan at a time, up to rounding the same numbers in less time.

At full resolution five of six cells are empty. There, convolutions are products at the cells where they matter: those
of the input at cells near a pillar, since all others give one value; those of the last block at cells that a pillar's
logits depend on. At lower resolutions the map is dense, in channels-last layout, and convolutions of many channels take
a quarter of the products. Batch norms are fused, and points go through their network a few pillars at a time.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from stage2_train_student.shipping.graphs import fused
from stage2_train_student.shipping.winograd import with_fewer_products
from stage2_train_student.students.birds_eye_unet import BirdsEyeUNet, upsampled
from stage2_train_student.students.pillar_maps import pillars_last
from stage2_train_student.students.point_pooling import segment_chunks
from stage2_train_student.students.polarnet import PolarNet

CHUNK_POINTS = 1024
"""Points at a time: what is known of them stays near the processor from the first layer to the maximum."""

CHUNK_CELLS = 2048
"""Cells whose neighbourhoods are gathered at a time, likewise."""


INNER = ("down1", "down2", "down3", "down4", "up1", "up2", "up3")
"""The U-Net's blocks that run on dense maps."""


class Neighbourhoods(NamedTuple):
    """Some cells of a map, and the rows of a table of cells that a 3x3 convolution reads for each.

    Attributes:
        cells: int64 [M], rho bin * azimuth bins + phi bin.
        rows: int64 [M, 9]; azimuth wraps around, the row after the last cell stands for what is outside radially.
    """

    cells: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, cells: torch.Tensor, shape: tuple[int, int]) -> "Neighbourhoods":
        """Those of some cells on a map of a shape, radial and azimuth bins."""
        radial, azimuth = shape
        steps = torch.tensor([-1, 0, 1])
        rho = (cells // azimuth)[:, None] + steps
        phi = ((cells % azimuth)[:, None] + steps) % azimuth
        rows = rho[:, :, None] * azimuth + phi[:, None, :]
        rows.masked_fill_(((rho < 0) | (rho >= radial))[:, :, None], radial * azimuth)
        return cls(cells, rows.flatten(1))

    def widened(self, shape: tuple[int, int]) -> "Neighbourhoods":
        """Those of the cells and all that they touch, and of the innermost and outermost ones, which see beyond."""
        radial, azimuth = shape
        mask = torch.zeros(radial * azimuth + 1, dtype=torch.bool)
        mask[self.rows.flatten()] = True
        mask[:azimuth] = mask[-1 - azimuth :] = True
        return Neighbourhoods.of(mask[:-1].nonzero().flatten(), shape)


class CellConvolution(nn.Module):
    """A 3x3 convolution and its activation at chosen cells."""

    def __init__(self, block: nn.Module | torch.Tensor) -> None:
        super().__init__()
        assert isinstance(block, nn.Sequential)
        convolution, self.activation = block
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        self.weight = nn.Parameter(convolution.weight.detach().permute(2, 3, 1, 0).flatten(0, 2).contiguous())
        self.bias = convolution.bias

    def forward(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """A table of cells [T, channels in] and the rows [M, 9] to read, to [M, channels out]."""
        out = table.new_empty(len(rows), self.weight.shape[1])
        for chunk, target in zip(rows.split(CHUNK_CELLS), out.split(CHUNK_CELLS), strict=True):
            read = table.index_select(0, chunk.flatten()).view(len(chunk), -1)
            torch.addmm(self.bias, read, self.weight, out=target)
        activated: torch.Tensor = self.activation(out)
        return activated


class SparseStudent(nn.Module):
    """A PolarNet in eval mode as a function from a batch of one scan to logits of its voxels, on a CPU.

    Args:
        student: stays as it is.
        precision: of the products; `bfloat16` pays where the processor has instructions for it. The first layer, which
            reads coordinates, and the classifier are float32 always.
    """

    def __init__(self, student: PolarNet, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        student = fused(student)
        network = student.BEV_model.network
        self.classes, self.precision = student.classes, precision
        self.coordinates, self.points = student.PPmodel[:3], student.PPmodel[3:]
        self.compression = student.fea_compression
        norm, block = network.inc.conv
        assert isinstance(norm, nn.BatchNorm2d)
        self.norm = norm
        self.first = nn.ModuleList([CellConvolution(part) for part in (block.conv1, block.conv2)])
        self.last = nn.ModuleList([CellConvolution(part) for part in (network.up4.conv.conv1, network.up4.conv.conv2)])
        if precision == torch.float32:
            # Coarser numbers would be too coarse for the differences that its transforms take.
            for name in INNER:
                with_fewer_products(network.get_submodule(name))
        self.inner: BirdsEyeUNet = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in (self.points, self.compression, self.norm, self.first, self.last, self.inner):
            part.to(precision)
        self.classifier = network.outc.float()
        # With a gradient to come the pooling would remember which point won.
        self.requires_grad_(False)

    def forward(self, batch: ScanBatch) -> torch.Tensor:
        """Logits of the batch's voxels, float32 [V, classes]."""
        radial, azimuth, heights = batch.grid_shape
        shape = (radial, azimuth)
        pillars = batch.pillars[:, 1] * azimuth + batch.pillars[:, 2]
        occupied = Neighbourhoods.of(pillars, shape)
        near = occupied.widened(shape)
        x1 = self.input_block(self.pillar_features(batch), occupied, near, shape)
        first_map = as_map(x1, shape)
        up = upsampled(self.inner.inner_layers(first_map)["x_up3"], first_map.shape)
        features = self.last_block(x1, as_table(up), occupied, near)
        logits = self.classifier(features.float()).view(-1, self.classes)
        return logits.index_select(0, batch.voxel_pillar * heights + batch.voxels[:, 3])

    def pillar_features(self, batch: ScanBatch) -> torch.Tensor:
        """Compressed features of occupied pillars [P, C]."""
        segment, order = batch.point_pillar.sort(stable=True)
        found = []
        for start, end in segment_chunks(segment, len(batch.pillars), CHUNK_POINTS):
            values = self.points(self.coordinates(batch.point_features[order[start:end]]).to(self.precision))
            local = segment[start:end] - segment[start]
            found.append(self.compression(segment_max(values, local, int(local[-1]) + 1)))
        return torch.cat(found)

    def input_block(
        self, features: torch.Tensor, occupied: Neighbourhoods, near: Neighbourhoods, shape: tuple[int, int]
    ) -> torch.Tensor:
        """The U-Net's first block as a table: all cells, a row of zeros, and one that is far from every pillar.

        The first convolution is computed `near` pillars, the second where it reads any of these; elsewhere each gives
        the value of its last row.
        """
        cells = shape[0] * shape[1]
        table = features.new_zeros(cells + 2, features.shape[1])
        table[occupied.cells] = features
        table = functional.batch_norm(
            table, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, eps=self.norm.eps
        )
        for convolution, found in zip(self.first, (near, near.widened(shape)), strict=True):
            table[cells] = 0
            # The last row stands for cells far from all: its neighbours are of its kind.
            rows = torch.cat((found.rows, found.rows.new_full((1, 9), cells + 1)))
            values = convolution(table, rows)
            table = values[-1].expand(cells + 2, -1).clone()
            table[found.cells] = values[:-1]
        table[cells] = 0
        return table

    def last_block(
        self, x1: torch.Tensor, up: torch.Tensor, occupied: Neighbourhoods, near: Neighbourhoods
    ) -> torch.Tensor:
        """The U-Net's last block at the pillars [P, C]."""
        joined = torch.cat((x1[: len(up)], up), dim=1)
        values = self.last[0](joined, near.rows)
        values = torch.cat((values, values.new_zeros(1, values.shape[1])))
        position = torch.full((len(up),), len(near.cells))
        position[near.cells] = torch.arange(len(near.cells))
        features: torch.Tensor = self.last[1](values, position[occupied.rows])
        return features


def as_map(table: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A table of cells [T, C] as a map [1, C, R, P] in channels-last layout, without a copy."""
    return table[: shape[0] * shape[1]].view(1, *shape, -1).permute(0, 3, 1, 2)


def as_table(features: torch.Tensor) -> torch.Tensor:
    """A map [1, C, R, P] as a table of cells with a row of zeros after the last, [R * P + 1, C]."""
    return functional.pad(pillars_last(features), (0, 0, 0, 1))
