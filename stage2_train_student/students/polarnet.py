"""PolarNet (Zhang et al., CVPR 2020): points to pillars, a bird's-eye-view U-Net, logits at occupied voxels.

State-dict keys and shapes are those of published PolarNet checkpoints (`PPmodel.*`, `fea_compression.*`,
`BEV_model.network.*`), so that either side loads strictly into the other.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from common.base.errors import SettingsError
from common.scans.polar_grid import POINT_FEATURES
from common.scans.scan_batch import ScanBatch
from common.scans.scatter import segment_max
from stage2_train_student.students.birds_eye_unet import BirdsEyeModel, BirdsEyeUNet, student_layers
from stage2_train_student.students.pillar_maps import in_layout, pillar_rows, pillars_last
from stage2_train_student.students.point_pooling import pooled_linear
from stage2_train_student.students.replay import Replay
from stage2_train_student.students.student import Student, StudentOutputs, StudentSettings

SMALLEST_MAP = 16
RECOMPUTED_POINTS = 32768
"""From so many points on, training computes the point network twice rather than keep its layers: 4 kB a point."""


class PolarNet(Student):
    """The student network; `height_bins` are those of the grid along z, `classes` include "unlabelled" (0)."""

    name = "polarnet"

    def __init__(self, settings: StudentSettings, height_bins: int, classes: int) -> None:
        super().__init__()
        self.height_bins, self.classes = height_bins, classes
        self.max_points_per_pillar, self.dropout = settings.max_points_per_pillar, settings.dropout
        point_channels, self.map_channels = settings.point_channels, settings.compressed_channels
        self.PPmodel = nn.Sequential(
            nn.BatchNorm1d(POINT_FEATURES),
            *[nn.Linear(POINT_FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU(inplace=True)],
            *[nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(inplace=True)],
            *[nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU(inplace=True)],
            nn.Linear(256, point_channels),
        )
        self.fea_compression = nn.Sequential(nn.Linear(point_channels, self.map_channels), nn.ReLU(inplace=True))
        network = BirdsEyeUNet(self.map_channels, height_bins * classes, settings.dropblock, settings.width)
        self.BEV_model = BirdsEyeModel(network)
        self.layers, self.replay = student_layers(settings.width), Replay()

    @classmethod
    def build(cls, settings: StudentSettings, grid_shape: tuple[int, int, int], classes: int) -> "PolarNet":
        """A student with fresh weights, see `Student`."""
        return cls(settings, grid_shape[2], classes)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile the bird's-eye-view network, in place, so that the state dict keeps its names.

        The point network stays as it is: its number of rows changes with every batch.
        """
        self.BEV_model.network.compile(*arguments, **options)

    def capture(self, scans: int, grid_shape: tuple[int, int, int]) -> dict[str, torch.Size]:
        network, device = self.BEV_model.network, next(self.parameters()).device
        maps = in_layout(torch.zeros(scans, self.map_channels, *grid_shape[:2], device=device)).requires_grad_()
        with torch.no_grad():
            sizes = {name: layer.shape for name, layer in network.eval()(maps).items()}
        self.replay.capture(network.train(), maps)
        return sizes

    def forward(self, batch: ScanBatch) -> StudentOutputs:
        """Logits of the batch's occupied voxels, and the layers that a teacher can be compared with.

        Raises:
            SettingsError: the batch's grid does not fit this network.
        """
        self.refuse_unfit(batch)
        layers = self.replay(self.BEV_model.network, self.pillar_map(batch))
        features = layers["x_up2"]
        if self.training and self.dropout > 0:
            features = functional.dropout(features, self.dropout)
        return StudentOutputs(self.voxel_logits(features, batch), layers, features, self.pillar_logits)

    def pillar_map(self, batch: ScanBatch) -> torch.Tensor:
        """Input of the U-Net: compressed features of occupied pillars, zeros elsewhere, float32 [B, C, R, P]."""
        point_features, point_pillar = batch.point_features, batch.point_pillar
        # Asked of the batch, not of the device: few batches have such a pillar, and all others wait for nothing.
        if self.training and batch.fullest_pillar > self.max_points_per_pillar:
            kept = choose_points(point_pillar, len(batch.pillars), self.max_points_per_pillar)
            point_features, point_pillar = point_features[kept], point_pillar[kept]
        pooled = self.pooled_points(point_features, point_pillar, len(batch.pillars))
        compressed = self.fea_compression(pooled)
        radial, azimuth, _ = batch.grid_shape
        flat = compressed.new_zeros(batch.scans * radial * azimuth, compressed.shape[1])
        flat = flat.index_copy(0, pillar_rows(batch), compressed)
        return in_layout(flat.view(batch.scans, radial, azimuth, flat.shape[1]).permute(0, 3, 1, 2))

    def pooled_points(self, point_features: torch.Tensor, point_pillar: torch.Tensor, pillars: int) -> torch.Tensor:
        """The point network and its maximum over the points of each pillar, float32 [pillars, point channels].

        In training its narrower layers are computed a second time in the backward pass instead of being kept where
        there are many points, and on a CPU the widest one goes pillar by pillar: together 0.7 GB a scan less at full
        size.
        """
        if not (self.training and torch.is_grad_enabled()):
            return segment_max(self.PPmodel(point_features), point_pillar, pillars)
        narrow, widest = self.PPmodel[:-1], self.PPmodel[-1]
        assert isinstance(narrow, nn.Sequential)
        assert isinstance(widest, nn.Linear)
        by_pillar = pillars > 0 and point_features.device.type == "cpu"
        if by_pillar:
            point_pillar, order = point_pillar.sort(stable=True)
            point_features = point_features[order]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), without_running_statistics(narrow)

        # Norms that several processes share talk to each other in every pass, so all must take as many.
        alone = all(type(module) in (nn.BatchNorm1d, nn.Linear, nn.ReLU) for module in narrow)
        if alone and len(point_features) < RECOMPUTED_POINTS:
            features = narrow(point_features)
        else:
            features = checkpoint(
                narrow, point_features, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
            )
        if by_pillar:
            return pooled_linear(features, widest.weight, widest.bias, point_pillar, pillars)
        return segment_max(widest(features), point_pillar, pillars)

    def pillar_logits(self, features: torch.Tensor) -> torch.Tensor:
        """The classifier, a 1x1 convolution, at chosen pillars: float32 [K, C] to [K, height bins, classes]."""
        logits: torch.Tensor = self.BEV_model.network.outc(features)
        return logits.view(-1, self.height_bins, self.classes)

    def voxel_logits(self, features: torch.Tensor, batch: ScanBatch) -> torch.Tensor:
        """Logits of occupied voxels, float32 [V, classes], from the classifier's input [B, C, R, P].

        The same numbers and gradients as the dense [B, heights * classes, R, P] map read at the occupied voxels, but
        that map (442 MB per scan at full size) is never built.
        """
        rows = pillars_last(features).index_select(0, pillar_rows(batch))
        logits = self.pillar_logits(rows).view(-1, self.classes)
        return logits.index_select(0, batch.voxel_pillar * self.height_bins + batch.voxels[:, 3])

    def refuse_unfit(self, batch: ScanBatch) -> None:
        """Raise SettingsError when the batch was voxelised on a grid that this network cannot take."""
        radial, azimuth, heights = batch.grid_shape
        if heights != self.height_bins:
            raise SettingsError(
                f"the grid has {heights} height bins but the student was built for {self.height_bins}; "
                "give both the same number (grid shape in the settings)"
            )
        if min(radial, azimuth) < SMALLEST_MAP:
            raise SettingsError(
                f"the grid has {radial}x{azimuth} radial and azimuth bins; PolarNet halves both four times, "
                f"so each needs at least {SMALLEST_MAP}"
            )


@contextmanager
def without_running_statistics(network: nn.Sequential) -> Iterator[None]:
    """Batch norms in training mode leave their running statistics alone, so that a second pass does not count twice."""
    originals = [(module, name, buffer) for module in network for name, buffer in module.named_buffers(recurse=False)]
    for module, name, buffer in originals:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in originals:
            setattr(module, name, buffer)


def choose_points(point_pillar: torch.Tensor, pillars: int, limit: int) -> torch.Tensor:
    """At most `limit` points of each pillar, chosen at random with torch's generator.

    Used in training only, as a bound on memory and a mild augmentation. The published code also draws while
    predicting, which makes a prediction depend on chance; here every point counts then. From the pillar of each point,
    int64 [N], to the kept points in ascending order, int64 [K].
    """
    counts = torch.bincount(point_pillar, minlength=pillars)
    # Pillar by pillar, the points of each in random order; the rank of each point is its place in its pillar.
    shuffled = torch.randperm(len(point_pillar), device=point_pillar.device)
    order = shuffled[torch.argsort(point_pillar[shuffled], stable=True)]
    first = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order), device=order.device) - first[point_pillar[order]]
    return order[rank < limit].sort().values
