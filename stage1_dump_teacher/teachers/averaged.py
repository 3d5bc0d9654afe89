"""Averages of teachers: over views of each scan, and over several teachers. Both are teachers themselves.

Averaged are probabilities, classes with "unlabelled" among them; the logits of an average are the logarithms of its
probabilities. The features of layers are those of the stored view, of the first teacher.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.base.errors import SettingsError
from common.base.overlap import started_ahead
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import ViewPolicy, apply_view, draw_view
from common.targets.teacher import Teacher, TeacherShare
from common.targets.teacher_targets import TeacherTargets
from common.targets.transport import mean_over_points
from common.training.predictor import SCALE

POLICY = ViewPolicy(rotate=True, flip=True, scale=SCALE)
"""Of the views that are averaged: those of `evaluate --views` with its default seed."""

SMALLEST_PROBABILITY = 1e-300
"""A softmax in float64 reaches 0 where logits are 745 apart; its logarithm must stay finite."""


class Average(Teacher):
    """What averages have in common: they load nothing themselves, and have the layers of their first teacher."""

    def __init__(self, teachers: Sequence[Teacher], shares: dict[str, TeacherShare]) -> None:
        self.teachers = tuple(teachers)
        self._shares = shares
        described = [[name, share.model_dump(mode="json")] for name, share in shares.items()]
        self.hash = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> Teacher:
        """See `Teacher`.

        Raises:
            SettingsError: always.
        """
        raise SettingsError("an average is made of teachers: give several checkpoints, or set views_averaged")

    @property
    def shares(self) -> dict[str, TeacherShare]:
        return self._shares

    @property
    def classes(self) -> int:
        """Classes of its logits, "unlabelled" included."""
        return self.teachers[0].classes

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each layer of the first teacher."""
        return self.teachers[0].channels

    def check_scan(self, scan: ScanId, points: int) -> None:
        for teacher in self.teachers:
            teacher.check_scan(scan, points)

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        """Targets of a batch: the average, with the layers of the first teacher in the view of the batch."""
        first = self.teachers[0].targets(batch, layers, voxel_features)
        return replace(first, logits=log_probabilities(self.mean(first, batch)))

    @abstractmethod
    def mean(self, first: TeacherTargets, batch: ScanBatch) -> torch.Tensor:
        """Mean probabilities of each voxel of a batch, float64 [V, classes].

        Args:
            first: what the first teacher says of the batch.
            batch: in the stored view.
        """


class AveragedViews(Average):
    """A teacher averaged over views of each scan: the stored one, and others that are made from it.

    A point takes the probabilities of the voxel that it falls in, in each view; a voxel of the stored view gets the
    mean over its points. So points of one voxel that part in another view both count there.
    """

    name = "averaged_views"

    def __init__(self, teacher: Teacher, views: int, grid: PolarGrid) -> None:
        super().__init__([teacher], {teacher.hash: TeacherShare(views=views, policy=POLICY)})
        self._views, self._grid = views, grid

    def mean(self, first: TeacherTargets, batch: ScanBatch) -> torch.Tensor:
        """See `Average`. Waits for a GPU: other views are made on the CPU, one ahead of the teacher.

        Raises:
            DataError: it is not known which scans these are, of which their views depend.
        """
        scans = list(zip(batch.scan_ids, batch.clouds(), strict=True))

        def seen(index: int) -> ScanBatch:
            moved = (apply_view(points, draw_view(POLICY, scan, index)) for scan, points in scans)
            return batch_scans([voxelise(points, self._grid) for points in moved], self._grid.shape)

        total = probabilities_of_points(first.logits, batch)
        for _, future in started_ahead(seen, range(1, self._views), depth=1):
            other = future.result().to(batch.voxels.device)
            total += probabilities_of_points(self.teachers[0].targets(other, ()).logits, other)
        return mean_over_points(total / self._views, batch)


class AveragedTeachers(Average):
    """Several teachers, each with a weight."""

    name = "averaged_teachers"

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float]) -> None:
        """Average some teachers.

        Args:
            teachers: two or more.
            weights: of each; only ratios count.

        Raises:
            SettingsError: a teacher is there twice.
        """
        shares: dict[str, TeacherShare] = {}
        for teacher, weight in zip(teachers, weights, strict=True):
            own = teacher.shares or {teacher.hash: TeacherShare()}
            if shares.keys() & own.keys():
                raise SettingsError(f"the teacher {teacher} is there twice; give it once, with a larger weight")
            shares |= {name: share.model_copy(update={"weight": weight}) for name, share in own.items()}
        super().__init__(teachers, shares)
        self._weights = [weight / sum(weights) for weight in weights]

    def mean(self, first: TeacherTargets, batch: ScanBatch) -> torch.Tensor:
        total = self._weights[0] * first.logits.double().softmax(dim=1)
        for teacher, weight in zip(self.teachers[1:], self._weights[1:], strict=True):
            total += weight * teacher.targets(batch, ()).logits.double().softmax(dim=1)
        return total


def probabilities_of_points(logits: torch.Tensor, batch: ScanBatch) -> torch.Tensor:
    """Of each point those of its voxel: logits float [V, classes] to float64 [N, classes]."""
    return logits.double().softmax(dim=1).index_select(0, batch.point_voxel)


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits that say the same: float64 [V, classes] to float32 [V, classes]."""
    return probabilities.clamp_min(SMALLEST_PROBABILITY).log().float()
