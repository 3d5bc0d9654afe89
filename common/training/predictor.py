"""Predicting every point of every scan, from one view of it or averaged over several (test-time augmentation)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from common.base.overlap import started_ahead
from common.scans.dataset import Dataset, LabelledScan, voxelise_view
from common.scans.polar_grid import PolarGrid, VoxelisedScan
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import View, ViewPolicy, draw_view
from common.training.metrics import ConfusionMatrix

VoxelLogits = Callable[[ScanBatch], torch.Tensor]
"""A model: from a batch of scans to logits of its voxels, float [V, classes]."""

SCALE = 0.05
"""Half width of the scale factors of test-time views, that of the original's training augmentation."""

Item = TypeVar("Item")


class PredictionPlan(NamedTuple):
    """How scans are predicted.

    Attributes:
        views: of each scan whose probabilities are averaged; the first is the scan as it is. 1 is plain prediction.
        seed: of the other views.
        batch_size: scan-views predicted at once; changes speed and memory, not the prediction.
    """

    views: int = 1
    seed: int = 0
    batch_size: int = 1


PLAIN = PredictionPlan()


class ScanPrediction(NamedTuple):
    """What a model says about a scan: training labels in 1..classes-1, uint8 [N]; and the scan as read from disk."""

    scan: ScanId
    labels: np.ndarray
    source: LabelledScan


def augmented_view(scan: ScanId, index: int, seed: int) -> View:
    """View `index` of a scan: 0 is the identity, the others flip, rotate and scale, the same ones for a seed."""
    return draw_view(ViewPolicy(rotate=True, flip=True, scale=SCALE, seed=seed), scan, index)


def most_likely_class(logits: torch.Tensor) -> torch.Tensor:
    """Class of highest logit, int64 [V] from float [V, classes]; never 0, since "unlabelled" is never right."""
    return logits[:, 1:].argmax(dim=1) + 1


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the classes that can be right, float32 [V, classes - 1] from float [V, classes]."""
    return logits[:, 1:].float().softmax(dim=1)


@dataclass(frozen=True)
class Predictor:
    """A model that predicts every point of scans, with the grid that it works on and the device that it is on."""

    logits: VoxelLogits
    grid: PolarGrid
    device: torch.device
    plan: PredictionPlan = PLAIN

    def predict(self, dataset: Dataset, scans: list[ScanId], progress: str | None = None) -> Iterator[ScanPrediction]:
        """Predict every point of every scan, in order.

        Each view is made from the scan as it is on disk. A point takes the probabilities of the voxel that it falls
        in, in each view, and gets the class whose mean is highest. Of a scan without points nothing is asked.
        `progress` names a progress bar; None for no bar.

        Raises:
            DataError: a scan cannot be read.
        """
        views = self.plan.views

        def prepare(item: tuple[ScanId, int]) -> tuple[LabelledScan, VoxelisedScan]:
            scan, index = item
            source, view = dataset.read(scan), augmented_view(scan, index, self.plan.seed)
            return source, voxelise_view(source, view, self.grid, dataset.label_map)

        items = [(scan, index) for scan in scans for index in range(views)]
        total: np.ndarray | None = None
        with tqdm(total=len(items), unit="scan-view", desc=progress, disable=progress is None) as bar:
            ahead = started_ahead(prepare, items, depth=1 + self.plan.batch_size)
            # Each result is taken before the next item is asked for: past the last one started calls are cancelled.
            for group in grouped(((item, future.result()) for item, future in ahead), self.plan.batch_size):
                of_views = self.rows([voxelised for _, (_, voxelised) in group])
                for ((scan, index), (source, voxelised)), of_voxel in zip(group, of_views, strict=True):
                    of_point = of_voxel[voxelised.point_voxel]
                    if views > 1:
                        total = of_point if index == 0 or total is None else total + of_point
                        of_point = total.argmax(axis=1).astype(np.uint8) + np.uint8(1)
                    bar.update()
                    if index == views - 1:
                        yield ScanPrediction(scan, of_point, source)

    def rows(self, voxelised: list[VoxelisedScan]) -> list[np.ndarray]:
        """What the model says about the voxels of some scans, in one batch.

        Returns:
            for each scan uint8 [V], the likeliest class, or float32 [V, classes - 1], probabilities, where several
            views are averaged.
        """
        seen = [scan for scan in voxelised if len(scan.voxels)]
        if not seen:
            nothing = np.empty(0, np.uint8) if self.plan.views == 1 else np.empty((0, 1), np.float32)
            return [nothing] * len(voxelised)
        logits = self.voxel_logits(seen)
        # With one view the logits decide: a saturated softmax could tie where they do not.
        rows = most_likely_class(logits).byte() if self.plan.views == 1 else class_probabilities(logits)
        return [part.numpy() for part in rows.cpu().split([len(scan.voxels) for scan in voxelised])]

    def voxel_logits(self, voxelised: list[VoxelisedScan]) -> torch.Tensor:
        """Logits of the voxels of some scans, in one batch: float [V, classes], on the device."""
        batch = batch_scans(voxelised, self.grid.shape).to(self.device)
        with torch.inference_mode():
            return self.logits(batch)

    def confusion(self, dataset: Dataset, scans: list[ScanId], progress: str | None = None) -> ConfusionMatrix:
        """Confusion matrix over all points of some labelled scans.

        Raises:
            DataError: a scan cannot be read.
        """
        total = ConfusionMatrix.empty(dataset.classes)
        for _, predicted, source in self.predict(dataset, scans, progress):
            assert source.labels is not None
            total = total + ConfusionMatrix.of(source.labels, predicted, dataset.classes)
        return total


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive items in lists of `size`; the last list may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
