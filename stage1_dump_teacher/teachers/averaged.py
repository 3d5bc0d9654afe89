"""An average of probabilities, over several teachers and over views of each scan: a teacher itself."""

import hashlib
import json
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
    """Teachers whose probabilities are averaged, classes with "unlabelled" among them.

    The logits of the average are the logarithms of its probabilities. The layers are those of the first teacher.
    """

    name = "average"

    def __init__(self, teachers: Sequence[Teacher], shares: Sequence[TeacherShare], grid: PolarGrid) -> None:
        """Average one teacher or more by their shares, on the grid; SettingsError where one is there twice."""
        self.teachers, self._grid = tuple(teachers), grid
        self._shares: dict[str, TeacherShare] = {}
        for teacher, share in zip(teachers, shares, strict=True):
            if teacher.hash in self._shares:
                raise SettingsError(f"the teacher {teacher} is there twice; give it once, with a larger weight")
            self._shares[teacher.hash] = share
        described = [[name, share.model_dump(mode="json")] for name, share in self._shares.items()]
        self.hash = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> Teacher:
        """Averages are made of teachers, see `load_teachers`."""
        raise SettingsError("an average is made of teachers: give several checkpoints, or set views_averaged")

    def __str__(self) -> str:
        """How many are averaged; `averaged_lines` of the store says which."""
        views = max(share.views for share in self._shares.values())
        what = "a teacher" if len(self.teachers) == 1 else f"{len(self.teachers)} teachers"
        return f"{self.hash[:12]}  average of {f'{views} views of ' if views > 1 else ''}{what}"

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
        """Targets of a batch: averaged logits, and the layers of the first teacher in the view of the batch.

        Raises:
            DataError: several views are averaged, and it is not known of which scans.
        """
        first = self.teachers[0].targets(batch, layers, voxel_features)
        weights, mean = [share.weight for share in self._shares.values()], torch.zeros_like(first.logits).double()
        for teacher, share in zip(self.teachers, self._shares.values(), strict=True):
            answer = first if teacher is self.teachers[0] else teacher.targets(batch, ())
            probabilities = answer.logits.double().softmax(dim=1)
            if share.views > 1:
                probabilities = self._over_views(teacher, probabilities, batch, share.views)
                if len(self.teachers) > 1:
                    # Rounded as its own average would be: stores of equal identity hold equal numbers.
                    probabilities = log_probabilities(probabilities).double().softmax(dim=1)
            mean += share.weight / sum(weights) * probabilities
        return replace(first, logits=log_probabilities(mean))

    def _over_views(self, teacher: Teacher, stored: torch.Tensor, batch: ScanBatch, views: int) -> torch.Tensor:
        """A teacher's mean probabilities of each voxel, over the stored view and others made from it.

        A point takes the probabilities of the voxel that it falls in, in each view; a voxel of the stored view gets the
        mean over its points. So points of one voxel that part in another view both count there. Waits for a GPU: other
        views are made on the CPU, one ahead of the teacher.

        Args:
            teacher: that is asked.
            stored: its probabilities in the stored view, float64 [V, classes].
            batch: in the stored view.
            views: in all, the stored one included.
        """
        scans = list(zip(batch.scan_ids, batch.clouds(), strict=True))

        def seen(index: int) -> ScanBatch:
            moved = (apply_view(points, draw_view(POLICY, scan, index)) for scan, points in scans)
            return batch_scans([voxelise(points, self._grid) for points in moved], self._grid.shape)

        total = stored[batch.point_voxel]
        for _, future in started_ahead(seen, range(1, views), depth=1):
            other = future.result().to(batch.voxels.device)
            total += teacher.targets(other, ()).logits.double().softmax(dim=1)[other.point_voxel]
        return mean_over_points(total / views, batch)


def log_probabilities(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits that say the same: float64 [V, classes] to float32 [V, classes]."""
    return probabilities.clamp_min(SMALLEST_PROBABILITY).log().float()
