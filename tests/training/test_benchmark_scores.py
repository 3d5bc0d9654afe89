"""mIoU as benchmarks compute it, against their formulas written down plainly here.

semantic-kitti-api, `auxiliary/np_ioueval.py`: points of an ignored class leave the matrix; IoU = hits / (union +
1e-15), so that a class that never occurs counts 0; mean over all classes that are not ignored. nuscenes-devkit,
`eval/lidarseg/utils.py`: row and column of class 0 are cleared; IoU = hits / union; `nanmean`, so that a class that
neither occurs nor is predicted is left out. In both a class that is only predicted counts 0. The devkit takes no
prediction of class 0, and this project makes none.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.training.metrics import ConfusionMatrix

CLASSES = 6


def hits_and_unions(truth: list[int], prediction: list[int]) -> list[tuple[int, int]]:
    pairs = [(one, other) for one, other in zip(truth, prediction, strict=True) if one != 0]
    return [
        (sum(one == other == label for one, other in pairs), sum(label in pair for pair in pairs))
        for label in range(1, CLASSES)
    ]


def semantic_kitti_score(truth: list[int], prediction: list[int]) -> float:
    return sum(hits / (union + 1e-15) for hits, union in hits_and_unions(truth, prediction)) / (CLASSES - 1)


def nuscenes_score(truth: list[int], prediction: list[int]) -> float:
    shares = [hits / union for hits, union in hits_and_unions(truth, prediction) if union]
    return sum(shares) / len(shares)


labels = st.integers(0, CLASSES - 1)
points = st.lists(st.tuples(labels, st.integers(1, CLASSES - 1)), min_size=1, max_size=12)


@given(points=points)
def test_both_averages_are_the_official_ones(points):
    truth, prediction = (np.array(column) for column in zip(*points, strict=True))
    matrix = ConfusionMatrix.of(truth, prediction, CLASSES)
    scores = [matrix.mean_iou_of_benchmark(absent) for absent in ("zero", "left_out")]
    if not truth.any():
        assert np.isnan(scores).all()
        return
    expected = [semantic_kitti_score(*zip(*points, strict=True)), nuscenes_score(*zip(*points, strict=True))]
    assert scores == pytest.approx(expected)


def test_what_becomes_of_a_class_that_is_absent_or_only_predicted():
    absent = ConfusionMatrix.of(np.array([0, 1, 2]), np.array([3, 1, 2]), CLASSES)
    assert absent.mean_iou_of_benchmark("left_out") == 1
    assert absent.mean_iou_of_benchmark("zero") == pytest.approx(2 / 5)
    predicted = ConfusionMatrix.of(np.array([0, 1, 2, 2]), np.array([3, 1, 2, 3]), CLASSES)
    assert predicted.mean_iou_of_benchmark("left_out") == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert predicted.mean_iou() == pytest.approx((1 + 1 / 2) / 2)
