"""A trained student in somebody's own program: points in, classes out."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch

from common.base.devices import select_device, use_device
from common.base.errors import DataError, SettingsError
from common.scans.label_map import LabelMap
from common.scans.point_checks import check_points
from common.scans.polar_grid import VoxelisedScan, voxelise
from common.training import predictor as scans
from common.training.predictor import class_probabilities, most_likely_class
from stage2_train_student.evaluation.evaluate import student_logits
from stage2_train_student.training.runs import load_student, run_settings, run_weights

COLUMNS = "[N, 4]: x, y, z in metres around the sensor, and remission as in the scans that it was trained on"

Points = TypeVar("Points", np.ndarray, torch.Tensor)
"""A NumPy array, or a tensor on any device; what comes back is of the same kind and on the same device."""


class PointPrediction(NamedTuple, Generic[Points]):
    """What a student says about some points.

    Attributes:
        classes: uint8 [N], in 1..C-1.
        probabilities: float32 [N, C] by class; those of class 0, unlabelled, are 0.
    """

    classes: Points
    probabilities: Points


@dataclass(frozen=True)
class Predictor:
    """A trained student. Call it with the points of a scan to get the class of each.

    Classes are never 0, unlabelled. A point outside the grid's volume counts as one on the volume's border, and gets
    the class found there. Several threads may use one predictor at once.

    Attributes:
        model: the student on its grid and device, as every command runs it.
        label_map: names, colours and raw ids of the classes.
    """

    model: scans.Predictor
    label_map: LabelMap

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "auto") -> Self:
        """The best student of a training run, or its last where no validation chose a best one.

        Args:
            folder: of the run, or one that `polar-distill export` wrote.
            device: `cpu`, `cuda`, `cuda:1`; `auto` is the first GPU, or the CPU where there is none.

        Raises:
            CheckpointError: there is no run, it has saved no student, or the weights do not fit its settings.
            SettingsError: its settings are damaged, or there is no such device; or `folder` is no path.
        """
        if not isinstance(folder, str | os.PathLike):
            raise SettingsError(f"Predictor.load: {folder!r:.80} is no folder; give the path of a run's")
        folder, chosen = Path(folder), select_device(str(device))
        settings = run_settings(folder)
        student, label_map = load_student(settings, run_weights(folder), chosen)
        return cls(scans.Predictor(student_logits(student), settings.grid.grid(), chosen), label_map)

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        return self.label_map.names

    @property
    def colours(self) -> np.ndarray:
        """Red, green, blue of each class, uint8 [C, 3]."""
        return np.array([info.colour for info in self.label_map.classes], np.uint8)

    def __call__(self, points: Points) -> Points:
        """Class of each point.

        Args:
            points: float [N, 4], x, y, z in metres around the sensor, and remission as in the scans it was trained on.

        Returns:
            uint8 [N].

        Raises:
            DataError: they have another shape or type, or hold NaN, infinity, or what no sensor measures.
        """
        voxelised, logits = self._voxel_logits(points)
        return at_points(most_likely_class(logits).byte(), voxelised, points)

    def predict(self, points: Points) -> PointPrediction[Points]:
        """Class of each point and the probability of every class; arguments and errors as in a call."""
        voxelised, logits = self._voxel_logits(points)
        classes = at_points(most_likely_class(logits).byte(), voxelised, points)
        probabilities = torch.nn.functional.pad(class_probabilities(logits), (1, 0))
        return PointPrediction(classes, at_points(probabilities, voxelised, points))

    def _voxel_logits(self, points: np.ndarray | torch.Tensor) -> tuple[VoxelisedScan, torch.Tensor]:
        """The points on the grid, and logits of their voxels."""
        voxelised = voxelise(checked_points(points), self.model.grid)
        if not len(voxelised.voxels):
            return voxelised, torch.empty(0, len(self.names))
        # Each thread has a current GPU of its own, where students that are built on spconv compute.
        use_device(self.model.device)
        return voxelised, self.model.voxel_logits([voxelised])


def at_points(of_voxel: torch.Tensor, voxelised: VoxelisedScan, points: Points) -> Points:
    """What is known of voxels [V, ...] at each point [N, ...], of the same kind as the points."""
    of_point = of_voxel.cpu().numpy()[voxelised.point_voxel]
    return torch.from_numpy(of_point).to(points.device) if isinstance(points, torch.Tensor) else of_point


def checked_points(points: np.ndarray | torch.Tensor) -> np.ndarray:
    """Points as float32 [N, 4] on the CPU.

    Raises:
        DataError: they have another shape or type, or hold NaN, infinity, or what no sensor measures.
    """
    if isinstance(points, torch.Tensor) and points.is_floating_point():
        points = points.detach().float().cpu().to_dense()
    elif not isinstance(points, np.ndarray) or points.dtype.kind != "f":
        raise DataError(
            f"points: {getattr(points, 'dtype', type(points).__name__)} cannot be used, give float {COLUMNS}"
        )
    if points.ndim != 2 or points.shape[1] != 4:
        raise DataError(f"points of shape {list(points.shape)}: give {COLUMNS}")
    with np.errstate(over="ignore"):
        cloud = np.ascontiguousarray(points, np.float32)
    check_points(cloud, "points", "Remove them first, as with points[np.isfinite(points).all(axis=1)].")
    return cloud
