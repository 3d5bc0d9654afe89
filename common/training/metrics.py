"""Confusion matrices over points and the intersection over union that benchmarks report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = 0

RANGE_STARTS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
"""Where distance ranges start, in metres from the sensor; each ends where the next starts, the last has no end."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of points, int64 [C, C]: rows are ground truth, columns are predictions. Add matrices to merge them."""

    counts: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> "ConfusionMatrix":
        """No points yet."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, truth: np.ndarray, prediction: np.ndarray, classes: int) -> "ConfusionMatrix":
        """Count the points of one scan by training labels in 0..classes-1, integer [N], 0 for none."""
        pairs = truth.astype(np.int64) * classes + prediction
        return cls(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def labelled_points(self) -> int:
        """Points with a ground truth label."""
        return int(np.delete(self.counts, IGNORED, axis=0).sum())

    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 [C]; NaN for the ignored class and for a class that occurs
        neither in the ground truth nor among the predictions of labelled points.

        As the benchmark does, points without a label do not count (Behley et al., ICCV 2019, equation 1).
        """
        counts = self.counts.astype(np.float64)
        counts[IGNORED] = 0.0
        hits = np.diag(counts)
        union = counts.sum(axis=0) + counts.sum(axis=1) - hits
        with np.errstate(invalid="ignore"):
            iou = np.where(union > 0, hits / union, np.nan)
        iou[IGNORED] = np.nan
        return iou

    def iou_of(self, names: Sequence[str]) -> dict[str, float | None]:
        """IoU by name of the class, without the ignored one; None for a class that does not occur."""
        shares = zip(names[1:], self.iou()[1:].tolist(), strict=True)
        return {name: None if np.isnan(share) else share for name, share in shares}

    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur in the ground truth; NaN when no point is labelled.

        All models are then scored over the same classes on the same points; a class that is only predicted costs the
        classes that its points belong to. Where every class occurs, as in SemanticKITTI's validation and test
        sequences, it is the benchmark's mIoU.
        """
        occurs = self.counts.sum(axis=1) > 0
        occurs[IGNORED] = False
        return float(self.iou()[occurs].mean()) if occurs.any() else float("nan")

    def mean_iou_of_benchmark(self, absent_classes: str) -> float:
        """Mean IoU as a benchmark computes it; NaN when no point is labelled.

        Args:
            absent_classes: of a class that occurs neither in the ground truth nor among the predictions of labelled
                points: `zero`, its IoU is 0 (semantic-kitti-api, `np_ioueval.py`); `left_out` of the mean
                (nuscenes-devkit, `eval/lidarseg/utils.py`). A class that is only predicted has an IoU of 0 in both.
        """
        iou = self.iou()
        if np.isnan(iou).all():
            return float("nan")
        return float(np.nan_to_num(iou[1:]).mean() if absent_classes == "zero" else np.nanmean(iou))

    def recall(self) -> np.ndarray:
        """Share of each class's points that are predicted right, float64 [C]; NaN for the ignored class and for one
        without a point."""
        points = self.counts.sum(axis=1).astype(np.float64)
        points[IGNORED] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(points > 0, np.diag(self.counts) / points, np.nan)

    def accuracy(self) -> float:
        """Share of labelled points predicted right; NaN when no point is labelled."""
        points = self.labelled_points
        return float(np.diag(self.counts)[1:].sum() / points) if points else float("nan")


def count_by_distance(
    truth: np.ndarray, prediction: np.ndarray, distance: np.ndarray, classes: int
) -> tuple[ConfusionMatrix, ...]:
    """As `ConfusionMatrix.of`, one matrix for each range of `RANGE_STARTS`; `distance` is float [N], metres."""
    ranges = np.searchsorted(np.asarray(RANGE_STARTS), distance, side="right") - 1
    cells = (ranges * classes + truth.astype(np.int64)) * classes + prediction
    counts = np.bincount(cells, minlength=len(RANGE_STARTS) * classes * classes)
    return tuple(ConfusionMatrix(part) for part in counts.reshape(len(RANGE_STARTS), classes, classes))


def add_up(matrices: Iterable[ConfusionMatrix], classes: int) -> ConfusionMatrix:
    """Sum of confusion matrices."""
    return sum(matrices, start=ConfusionMatrix.empty(classes))
