"""The student as functions of plain arrays, which can be written as ONNX graphs.

`student` is the whole network as it is trained. It pools points with a scatter that takes maxima (ONNX opset 18). The
other form needs no reduction in a scatter: `pillars` takes pillars padded to a number of points, `map` the features
of pillars. A padded pillar repeats its points, which changes no maximum; one that is cut loses those beyond.
"""

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from stage2_train_student.students.birds_eye_unet import DoubleConvolution
from stage2_train_student.students.polarnet import PolarNet
from stage2_train_student.students.student import Student


class GraphInputs(NamedTuple):
    """What the whole network takes beside the shape of its grid; the names are those of the ONNX graph's inputs.

    Attributes:
        point_features: float32 [N, 9].
        point_pillar: int64 [N], row in `pillar_cell` of each point.
        pillar_cell: int64 [P], rho bin * azimuth bins + phi bin of each occupied pillar.
        voxel_pillar: int64 [V], row in `pillar_cell` of each occupied voxel.
        voxel_height: int64 [V], z bin of each occupied voxel.
    """

    point_features: torch.Tensor
    point_pillar: torch.Tensor
    pillar_cell: torch.Tensor
    voxel_pillar: torch.Tensor
    voxel_height: torch.Tensor

    @classmethod
    def of(cls, batch: ScanBatch) -> "GraphInputs":
        """Those of a batch of one scan."""
        _, rho, phi = batch.pillars.unbind(1)
        cell = rho * batch.grid_shape[1] + phi
        return cls(batch.point_features, batch.point_pillar, cell, batch.voxel_pillar, batch.voxels[:, 3])


class PillarNetwork(nn.Module):
    """Points of padded pillars, float32 [P, K, 9], to the features of each pillar, float32 [P, C]."""

    def __init__(self, student: PolarNet) -> None:
        super().__init__()
        self.points, self.compression = student.PPmodel, student.fea_compression

    def forward(self, padded_pillars: torch.Tensor) -> torch.Tensor:
        values = self.points(padded_pillars.flatten(0, 1))
        pooled = values.unflatten(0, padded_pillars.shape[:2]).amax(dim=1)
        compressed: torch.Tensor = self.compression(pooled)
        return compressed


class MapNetwork(nn.Module):
    """Features of pillars, float32 [P, C], and where pillars and voxels are, to logits float32 [V, classes]."""

    def __init__(self, student: PolarNet, grid_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.grid_shape, self.classes = student.BEV_model.network, grid_shape, student.classes

    def forward(
        self,
        pillar_features: torch.Tensor,
        pillar_cell: torch.Tensor,
        voxel_pillar: torch.Tensor,
        voxel_height: torch.Tensor,
    ) -> torch.Tensor:
        radial, azimuth, heights = self.grid_shape
        flat = pillar_features.new_zeros(radial * azimuth, pillar_features.shape[1])
        flat = flat.index_put((pillar_cell,), pillar_features)
        pillar_map = flat.t().reshape(1, -1, radial, azimuth)
        rows = self.network(pillar_map)["x_up2"].flatten(2)[0].index_select(1, pillar_cell).t()
        logits: torch.Tensor = self.network.outc(rows).reshape(-1, self.classes)
        return logits.index_select(0, voxel_pillar * heights + voxel_height)


class WholeNetwork(nn.Module):
    """`GraphInputs` to logits of occupied voxels, float32 [V, classes]."""

    def __init__(self, student: PolarNet, grid_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.points, self.compression = student.PPmodel, student.fea_compression
        self.map = MapNetwork(student, grid_shape)

    def forward(
        self,
        point_features: torch.Tensor,
        point_pillar: torch.Tensor,
        pillar_cell: torch.Tensor,
        voxel_pillar: torch.Tensor,
        voxel_height: torch.Tensor,
    ) -> torch.Tensor:
        values = self.points(point_features)
        pooled = values.new_full((pillar_cell.shape[0], values.shape[1]), -torch.inf)
        pooled = pooled.scatter_reduce(0, point_pillar[:, None].expand_as(values), values, "amax")
        logits: torch.Tensor = self.map(self.compression(pooled), pillar_cell, voxel_pillar, voxel_height)
        return logits


def check_exportable(student: Student) -> PolarNet:
    """The student, if it can be written as ONNX.

    Raises:
        SettingsError: it is no PolarNet; the sparse convolutions of other students are not part of ONNX.
    """
    if not isinstance(student, PolarNet):
        raise SettingsError(
            f"student.network: {student.name} cannot be written as ONNX; only polarnet can. Export without ONNX with "
            "--no-onnx."
        )
    return student


def fused(student: PolarNet) -> PolarNet:
    """A copy in eval mode whose batch norms are part of the layers beside them, up to rounding the same function.

    Those of the inputs stay: coordinates of 80 m are centred first, and zero padding comes after the norm.
    """
    # In float64, so that a fused weight is rounded once.
    student = deepcopy(student).eval().double()
    student.PPmodel = nn.Sequential(*fused_points(student.PPmodel))
    for module in student.modules():
        if isinstance(module, DoubleConvolution):
            module.conv1, module.conv2 = map(fused_convolution, (module.conv1, module.conv2))
    return student.float()


def fused_convolution(block: nn.Sequential) -> nn.Sequential:
    """Convolution, batch norm and activation as convolution and activation."""
    convolution, norm, activation = block
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return nn.Sequential(fuse_conv_bn_eval(convolution, norm), activation)


def fused_points(points: nn.Sequential) -> list[nn.Module]:
    """The point network without its batch norms but the first."""
    merged: list[nn.Module] = []
    for layer in points:
        if merged and isinstance(layer, nn.BatchNorm1d):
            linear = merged.pop()
            assert isinstance(linear, nn.Linear)
            layer = fuse_linear_bn_eval(linear, layer)
        merged.append(layer)
    return merged
