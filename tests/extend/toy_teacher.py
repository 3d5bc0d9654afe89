"""A teacher of one's own: without weights, the higher a voxel, the higher its class."""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher import Teacher
from common.targets.teacher_targets import PillarFeatures, TeacherTargets


class HeightTeacher(Teacher):
    """One layer, `height`: the number of voxels in each pillar, at half the resolution of the grid."""

    name = "height"
    hash = "f" * 64

    def __init__(self, classes: int = 20) -> None:
        self.number, self.asked = classes, 0

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> "HeightTeacher":
        return cls(int(checkpoint.read_text()))

    @property
    def classes(self) -> int:
        return self.number

    @property
    def channels(self) -> dict[str, int]:
        return {"height": 1}

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        self.asked += 1
        classes = (batch.voxels[:, 3] * self.classes).div(batch.grid_shape[2], rounding_mode="floor")
        logits = 5.0 * torch.nn.functional.one_hot(classes, self.classes).float()
        radial, azimuth = (size // 2 for size in batch.grid_shape[:2])
        coarse = batch.voxels[:, :3] // torch.tensor([1, 2, 2], device=batch.voxels.device)
        pillars, counts = torch.unique(coarse, dim=0, return_counts=True)
        layer = PillarFeatures(pillars, counts[:, None].float(), (radial, azimuth))
        return TeacherTargets(batch.voxels, logits, dict.fromkeys(layers, layer))
