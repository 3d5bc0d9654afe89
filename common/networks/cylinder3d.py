"""Cylinder3D (Zhu et al., CVPR 2021): the 3D voxel network, computing what its published checkpoints were trained with.

Published checkpoints come from spconv 1.2.1, where every submanifold layer that shares an `indice_key` with an earlier
one silently used that layer's kernel. The kernels below are those *effective* kernels, not the ones the original source
declares; `published_weights` maps checkpoints onto them. Module names are the published ones, so that state-dict keys
stay familiar. Axes of all kernels and strides are (rho, phi, z); nothing wraps around in phi.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from common.base.devices import CPU
from common.networks.sparse import sparse, sparse_convolutions, use_algorithm_of
from common.scans.polar_grid import POINT_FEATURES
from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from common.targets.teacher_targets import VoxelFeatures
from common.targets.transport import linear_index

if TYPE_CHECKING:
    import spconv.pytorch as spconv

# spconv asks torch.fx at its first convolution whether it is being traced; torch warns about the way it asks.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

Triple = tuple[int, int, int]
KERNEL_1X3X3 = (1, 3, 3)
KERNEL_3X1X3 = (3, 1, 3)
KERNEL_3X1X1 = (3, 1, 1)
POINT_WIDTHS = (64, 128, 256)
FEATURE_LAYERS = {"down1c": 2, "down3c": 8, "up4e": 16, "up2e": 4, "up0e": 2}
"""Layers that a pillar student is distilled from, with their channels in multiples of the base width m."""


@dataclass(frozen=True)
class TeacherWidths:
    """Channel counts of a Cylinder3D; the defaults are the published model's.

    Attributes:
        point_channels: output of the point network.
        voxel_channels: compressed voxel features entering the sparse network (16; 32 in PVKD's checkpoints).
        base: width m of the context block; blocks are m, 2m, 4m, 8m and 16m wide.
        classes: number of classes, unlabelled included.
    """

    point_channels: int = 256
    voxel_channels: int = 16
    base: int = 32
    classes: int = 20

    @property
    def layers(self) -> dict[str, int]:
        """Channels of each layer that a student can be distilled from."""
        layers = {name: factor * self.base for name, factor in FEATURE_LAYERS.items()}
        return layers | {"up1e": 2 * self.base, "vox": self.voxel_channels}


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits of the batch's `voxels`, float [V, classes], and the layers that were asked for."""

    logits: torch.Tensor
    layers: dict[str, VoxelFeatures]


class Cylinder3D(nn.Module):
    """Point network, then an asymmetric sparse U-Net over occupied voxels. Dense logits are never built."""

    def __init__(self, widths: TeacherWidths = TeacherWidths(), on_cpu: bool = False) -> None:
        super().__init__()
        self.widths = widths
        self.cylinder_3d_generator = VoxelFeatureNetwork(widths)
        self.cylinder_3d_spconv_seg = AsymmetricSparseUNet(widths)
        if on_cpu:
            use_algorithm_of(self, CPU)

    def forward(self, batch: ScanBatch, layers: tuple[str, ...] = ()) -> TeacherOutputs:
        """Logits of every occupied voxel.

        Args:
            batch: voxelised scans on the teacher's device.
            layers: names of inner layers to return as well: `vox` (compressed voxel features), `ctx`, `down1c`,
                `down2c`, `down3c`, `down4c`, `up4e`, `up3e`, `up2e`, `up1e`, `up0e`.
        """
        # Both in float32, unless the sparse network was halved.
        voxel_features = self.cylinder_3d_generator(batch).to(self.cylinder_3d_spconv_seg.logits.weight.dtype)
        sites = sparse().pytorch.SparseConvTensor(
            voxel_features, batch.voxels.int(), list(batch.grid_shape), batch.scans
        )
        logits, tensors = self.cylinder_3d_spconv_seg(sites)
        tensors["vox"] = sites
        return TeacherOutputs(logits.features.float(), {name: sorted_layer(tensors[name]) for name in layers})


def halve_sparse_network(model: Cylinder3D) -> None:
    """Compute the sparse network in float16 with sums in float32, on CUDA only; the point network stays in float32."""
    for convolution in sparse_convolutions(model.cylinder_3d_spconv_seg.half()):
        convolution.fp32_accum = True


class VoxelFeatureNetwork(nn.Module):
    """Per-point network, maximum over each voxel, compression."""

    def __init__(self, widths: TeacherWidths) -> None:
        super().__init__()
        self.PPmodel = point_network(widths.point_channels)
        self.fea_compression = nn.Sequential(nn.Linear(widths.point_channels, widths.voxel_channels), nn.ReLU())

    def forward(self, batch: ScanBatch) -> torch.Tensor:
        """Voxel features, float [V, voxel_channels]."""
        points = self.PPmodel(batch.point_features)
        voxels: torch.Tensor = self.fea_compression(segment_max(points, batch.point_voxel, len(batch.voxels)))
        return voxels


def point_network(outputs: int) -> nn.Sequential:
    """Batch norm over the nine features, then linear layers of 64, 128, 256 and `outputs` channels."""
    modules: list[nn.Module] = [nn.BatchNorm1d(POINT_FEATURES)]
    inputs = POINT_FEATURES
    for width in POINT_WIDTHS:
        modules += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*modules, nn.Linear(inputs, outputs))


class AsymmetricSparseUNet(nn.Module):
    """The sparse encoder and decoder with the directional reconstruction block."""

    def __init__(self, widths: TeacherWidths) -> None:
        super().__init__()
        m = widths.base
        self.downCntx = TwoBranchBlock(widths.voxel_channels, m, KERNEL_1X3X3, "context")
        self.resBlock2 = TwoBranchBlock(m, 2 * m, KERNEL_3X1X3, "down2", pool_stride=(2, 2, 2))
        self.resBlock3 = TwoBranchBlock(2 * m, 4 * m, KERNEL_3X1X3, "down3", pool_stride=(2, 2, 2))
        self.resBlock4 = TwoBranchBlock(4 * m, 8 * m, KERNEL_3X1X3, "down4", pool_stride=(2, 2, 1))
        self.resBlock5 = TwoBranchBlock(8 * m, 16 * m, KERNEL_3X1X3, "down5", pool_stride=(2, 2, 1))
        self.upBlock0 = UpBlock(16 * m, 16 * m, "up0", "down5")
        self.upBlock1 = UpBlock(16 * m, 8 * m, "up1", "down4")
        self.upBlock2 = UpBlock(8 * m, 4 * m, "up2", "down3")
        self.upBlock3 = UpBlock(4 * m, 2 * m, "up3", "down2")
        self.ReconNet = ReconstructionBlock(2 * m)
        self.logits = sparse().pytorch.SubMConv3d(4 * m, widths.classes, 3, padding=1, bias=True, indice_key="logits")

    def forward(self, x: spconv.SparseConvTensor) -> tuple[spconv.SparseConvTensor, dict[str, spconv.SparseConvTensor]]:
        """Logits on the sites of `x`, and all inner tensors by name: `b` is a block's before pooling, `c` after it."""
        ctx = self.downCntx(x)
        down1b = self.resBlock2(ctx)
        down1c = self.resBlock2.pool(down1b)
        down2b = self.resBlock3(down1c)
        down2c = self.resBlock3.pool(down2b)
        down3b = self.resBlock4(down2c)
        down3c = self.resBlock4.pool(down3b)
        down4b = self.resBlock5(down3c)
        down4c = self.resBlock5.pool(down4b)
        up4e = self.upBlock0(down4c, down4b)
        up3e = self.upBlock1(up4e, down3b)
        up2e = self.upBlock2(up3e, down2b)
        up1e = self.upBlock3(up2e, down1b)
        up0e = self.ReconNet(up1e)
        both = up0e.replace_feature(torch.cat((up0e.features, up1e.features), dim=1))
        down = {"ctx": ctx, "down1c": down1c, "down2c": down2c, "down3c": down3c, "down4c": down4c}
        up = {"up4e": up4e, "up3e": up3e, "up2e": up2e, "up1e": up1e, "up0e": up0e}
        return convolve_with_bias(self.logits, both), down | up


class TwoBranchBlock(nn.Module):
    """Two branches of two submanifold convolutions each, summed; down blocks add a strided convolution, `pool`."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, key: str, pool_stride: Triple | None = None) -> None:
        super().__init__()
        shared = f"{key}_submanifold"
        self.conv1 = submanifold(inputs, outputs, kernel, shared)
        self.bn0 = nn.BatchNorm1d(outputs)
        self.conv1_2 = submanifold(outputs, outputs, kernel, shared)
        self.bn0_2 = nn.BatchNorm1d(outputs)
        self.conv2 = submanifold(inputs, outputs, kernel, shared)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv3 = submanifold(outputs, outputs, kernel, shared)
        self.bn2 = nn.BatchNorm1d(outputs)
        if pool_stride is not None:
            self.pool = sparse().pytorch.SparseConv3d(
                outputs, outputs, 3, stride=pool_stride, padding=1, bias=False, indice_key=key
            )

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        """Sum of both branches, before any pooling."""
        shortcut = activate(self.conv1_2, self.bn0_2, activate(self.conv1, self.bn0, x))
        residual = activate(self.conv3, self.bn2, activate(self.conv2, self.bn1, x))
        return residual.replace_feature(residual.features + shortcut.features)


class UpBlock(nn.Module):
    """Transforms coarse sites, carries them back onto the skip's sites, adds the skip, convolves three times."""

    def __init__(self, inputs: int, outputs: int, key: str, down_key: str) -> None:
        super().__init__()
        self.trans_dilao = submanifold(inputs, outputs, (3, 3, 3), f"{key}_coarse")
        self.trans_bn = nn.BatchNorm1d(outputs)
        self.up_subm = sparse().pytorch.SparseInverseConv3d(outputs, outputs, 3, indice_key=down_key, bias=False)
        self.conv1 = submanifold(outputs, outputs, KERNEL_1X3X3, key)
        self.bn1 = nn.BatchNorm1d(outputs)
        self.conv2 = submanifold(outputs, outputs, KERNEL_1X3X3, key)
        self.bn2 = nn.BatchNorm1d(outputs)
        self.conv3 = submanifold(outputs, outputs, KERNEL_1X3X3, key)
        self.bn3 = nn.BatchNorm1d(outputs)

    def forward(self, x: spconv.SparseConvTensor, skip: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        """Features on the sites of `skip`."""
        up = self.up_subm(activate(self.trans_dilao, self.trans_bn, x))
        up = up.replace_feature(up.features + skip.features)
        up = activate(self.conv1, self.bn1, up)
        up = activate(self.conv2, self.bn2, up)
        return activate(self.conv3, self.bn3, up)


class ReconstructionBlock(nn.Module):
    """Three sigmoid gates, summed, times the input (dimension-decomposition context modelling, section 3.4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = submanifold(channels, channels, KERNEL_3X1X1, "reconstruction")
        self.bn0 = nn.BatchNorm1d(channels)
        self.conv1_2 = submanifold(channels, channels, KERNEL_3X1X1, "reconstruction")
        self.bn0_2 = nn.BatchNorm1d(channels)
        self.conv1_3 = submanifold(channels, channels, KERNEL_3X1X1, "reconstruction")
        self.bn0_3 = nn.BatchNorm1d(channels)

    def forward(self, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
        """Gated features on the same sites."""
        gates = torch.sigmoid(self.bn0(self.conv1(x).features))
        gates = gates + torch.sigmoid(self.bn0_2(self.conv1_2(x).features))
        gates = gates + torch.sigmoid(self.bn0_3(self.conv1_3(x).features))
        return x.replace_feature(gates * x.features)


def submanifold(inputs: int, outputs: int, kernel: Triple, key: str) -> spconv.SubMConv3d:
    """A convolution without bias that keeps its sites; those of one `key` share a rulebook, hence a kernel."""
    padding = [size // 2 for size in kernel]
    return sparse().pytorch.SubMConv3d(inputs, outputs, kernel, padding=padding, bias=False, indice_key=key)


def activate(convolution: nn.Module, norm: nn.BatchNorm1d, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
    """Convolution, LeakyReLU, then batch norm: Cylinder3D normalises after the activation."""
    out = convolution(x)
    return out.replace_feature(norm(nn.functional.leaky_relu(out.features, 0.01)))


def sorted_layer(tensor: spconv.SparseConvTensor) -> VoxelFeatures:
    """A sparse tensor's sites and features, sorted by (scan, rho, phi, z): spconv orders strided sites arbitrarily."""
    radial, azimuth, height = tensor.spatial_shape
    sites, shape = tensor.indices.long(), (radial, azimuth, height)
    order = torch.argsort(linear_index(sites, shape))
    return VoxelFeatures(sites[order], tensor.features[order].float(), shape)


def convolve_with_bias(convolution: spconv.SubMConv3d, x: spconv.SparseConvTensor) -> spconv.SparseConvTensor:
    """A convolution whose bias is added outside: spconv 2.3.8 refuses a bias on a CPU in eval mode."""
    # The bias stays where it is: other threads may use the network.
    out = convolution._conv_forward(convolution.training, x, convolution.weight, None)
    return out.replace_feature(out.features + convolution.bias)
