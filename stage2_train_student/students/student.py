"""What a student is: one class in one file beside `polarnet.py`, or anywhere else that a setting can name."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import nn

from common.base.config import Settings
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import VoxelFeatures
from common.training.resuming import load_strictly
from common.training.wrapped_weights import load_weights


@dataclass(frozen=True)
class StudentOutputs:
    """What a student says about a `ScanBatch`.

    Attributes:
        voxel_logits: float32 [V, classes], one row for each row of the batch's `voxels`.
        layers: float32 [B, C, R, P] by layer name: what a teacher's layers can be compared with; none of a student that
            learns from logits alone.
        classifier_input: float32 [B, C, R, P], the map that the classifier reads; None where there is no such map.
        pillar_logits: the classifier, float32 [K, C] (pillars of `classifier_input`) to [K, height bins, classes].
        voxel_layers: in training, float32 features of the active voxels by layer name, where the student has such.
    """

    voxel_logits: torch.Tensor
    layers: dict[str, torch.Tensor] = field(default_factory=dict)
    classifier_input: torch.Tensor | None = None
    pillar_logits: Callable[[torch.Tensor], torch.Tensor] | None = None
    voxel_layers: dict[str, VoxelFeatures] = field(default_factory=dict)


class Student(nn.Module):
    """A network that is trained, evaluated and used for predictions.

    Attributes:
        name: that the setting `student.network` gives; the name of the file.
        layers: channels of each layer in its outputs, by name; without any, it can learn from a teacher's logits alone.
    """

    name: ClassVar[str]
    layers: dict[str, int] = {}

    @classmethod
    @abstractmethod
    def build(cls, settings: "StudentSettings", grid_shape: tuple[int, int, int], classes: int) -> Self:
        """A student with fresh weights for a grid (bins along rho, phi, z), its classes with "unlabelled" as 0."""

    def capture(self, scans: int, grid_shape: tuple[int, int, int]) -> dict[str, torch.Size]:
        """On a GPU, prepare to replay what does not depend on a batch's points from CUDA graphs, see `replay.py`.

        Returns sizes of the layers of a batch of so many scans, by name; none where nothing is replayed.
        """
        return {}

    def published(self) -> dict[str, torch.Tensor]:
        """Its weights as published checkpoints hold them, contiguous on the CPU: what a run keeps as its student."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}

    def load_published(self, path: Path, what: str) -> None:
        """Load a file of such weights, ours or published ones; `what` names this network for messages.

        Raises:
            CheckpointError: the file cannot be read safely, or does not match in every name and shape.
        """
        load_strictly(path, self, load_weights(path, self.state_dict().keys(), what), what)

    @abstractmethod
    def forward(self, batch: ScanBatch) -> StudentOutputs:
        """Logits of the batch's occupied voxels, and the layers that a teacher can be compared with.

        Raises:
            SettingsError: the batch's grid does not fit this network.
        """

    def __call__(self, batch: ScanBatch) -> StudentOutputs:
        """As `forward`."""
        outputs: StudentOutputs = super().__call__(batch)
        return outputs


class StudentSettings(Settings):
    """The student; the defaults are the published PolarNet.

    Attributes:
        network: `polarnet`, `cylinder3d`, or a class of your own such as `my_package.my_file:MyStudent`.
        options: settings of any network but PolarNet.
        point_channels: width of PolarNet's point features that are pooled into pillars.
        compressed_channels: channels of PolarNet's pillar map.
        max_points_per_pillar: points of one pillar that count in training.
        dropblock: drop probability of DropBlock in PolarNet, 0 = off.
        dropout: drop probability before PolarNet's classifier, 0 = off. Left out it is what the published code does:
            0.5 where DropBlock is off, otherwise 0.
        width: channels of PolarNet's first U-Net block; all others are multiples of it.
    """

    network: str = "polarnet"
    options: dict[str, Any] = {}
    point_channels: int = Field(512, ge=1)
    compressed_channels: int = Field(32, ge=1)
    max_points_per_pillar: int = Field(256, ge=1)
    dropblock: float = Field(0.5, ge=0, lt=1)
    dropout: float = Field(default_factory=lambda values: 0.0 if values.get("dropblock", 0.5) > 0 else 0.5, ge=0, lt=1)
    width: int = Field(64, ge=1)
