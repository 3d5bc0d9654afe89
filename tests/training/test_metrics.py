"""IoU against a count by hand, one point after another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.training.metrics import RANGE_STARTS, ConfusionMatrix, add_up, count_by_distance

CLASSES = 5


def naive_iou(truth: list[int], prediction: list[int]) -> list[float]:
    """IoU of each class over points with a label; NaN where there is nothing to divide by."""
    pairs = [(t, p) for t, p in zip(truth, prediction, strict=True) if t != 0]
    values = [float("nan")]
    for label in range(1, CLASSES):
        both = sum(t == label and p == label for t, p in pairs)
        either = sum(label in (t, p) for t, p in pairs)
        values.append(both / either if either else float("nan"))
    return values


@st.composite
def points(draw) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of the same points; some classes may not occur, and there may be no point."""
    count = draw(st.integers(0, 40))
    labels = st.integers(0, draw(st.integers(0, CLASSES - 1)))
    truth = draw(hnp.arrays(np.uint8, count, elements=labels))
    return truth, draw(hnp.arrays(np.uint8, count, elements=st.integers(0, CLASSES - 1)))


@given(points())
def test_iou_is_the_count_by_hand(pair):
    truth, prediction = pair
    matrix = ConfusionMatrix.of(truth, prediction, CLASSES)
    expected = np.array(naive_iou(truth.tolist(), prediction.tolist()))
    np.testing.assert_allclose(matrix.iou(), expected, rtol=1e-12)
    present = expected[[label in truth and label != 0 for label in range(CLASSES)]]
    assert matrix.mean_iou() == pytest.approx(present.mean() if len(present) else float("nan"), nan_ok=True)


@given(points())
def test_accuracy_and_points_are_those_with_a_label(pair):
    truth, prediction = pair
    matrix = ConfusionMatrix.of(truth, prediction, CLASSES)
    labelled = truth != 0
    assert matrix.labelled_points == labelled.sum()
    expected = (truth == prediction)[labelled].mean() if labelled.any() else float("nan")
    assert matrix.accuracy() == pytest.approx(expected, nan_ok=True)


@given(points(), points())
def test_merging_is_counting_all_points_at_once(one, other):
    merged = ConfusionMatrix.of(*one, CLASSES) + ConfusionMatrix.of(*other, CLASSES)
    together = ConfusionMatrix.of(*map(np.concatenate, zip(one, other, strict=True)), CLASSES)
    np.testing.assert_array_equal(merged.counts, together.counts)
    np.testing.assert_array_equal((merged + ConfusionMatrix.empty(CLASSES)).counts, merged.counts)


@given(points(), hnp.arrays(np.uint8, 12, elements=st.integers(0, CLASSES - 1)))
def test_points_without_a_label_change_nothing(pair, predictions):
    matrix = ConfusionMatrix.of(*pair, CLASSES)
    more = matrix + ConfusionMatrix.of(np.zeros_like(predictions), predictions, CLASSES)
    np.testing.assert_array_equal(more.iou(), matrix.iou())
    assert more.accuracy() == pytest.approx(matrix.accuracy(), nan_ok=True)


def test_a_labelled_point_predicted_as_unlabelled_is_a_miss():
    matrix = ConfusionMatrix.of(np.array([1, 1]), np.array([1, 0]), CLASSES)
    assert matrix.iou()[1] == 0.5
    assert matrix.accuracy() == 0.5


def test_a_class_that_occurs_nowhere_is_nan_and_one_only_predicted_is_zero():
    iou = ConfusionMatrix.of(np.array([1, 1]), np.array([1, 2]), CLASSES).iou()
    assert iou[1] == 0.5
    assert iou[2] == 0.0
    assert np.isnan(iou[[0, 3, 4]]).all()


def test_without_points_there_is_no_number():
    empty = ConfusionMatrix.empty(CLASSES)
    assert np.isnan([empty.mean_iou(), empty.accuracy()]).all()
    assert empty.labelled_points == 0


def test_rows_are_the_truth():
    counts = ConfusionMatrix.of(np.array([1, 1, 2]), np.array([2, 2, 1]), CLASSES).counts
    assert counts[1, 2] == 2
    assert counts[2, 1] == 1
    assert counts.dtype == np.int64


@given(points(), st.integers(0, 2**32 - 1))
def test_counts_by_distance_are_those_of_the_points_in_each_range(pair, seed):
    truth, prediction = pair
    distance = np.random.default_rng(seed).uniform(0, 80, len(truth))
    matrices = count_by_distance(truth, prediction, distance, CLASSES)
    assert len(matrices) == len(RANGE_STARTS)
    for start, end, matrix in zip(RANGE_STARTS, (*RANGE_STARTS[1:], np.inf), matrices, strict=True):
        inside = (start <= distance) & (distance < end)
        expected = ConfusionMatrix.of(truth[inside], prediction[inside], CLASSES)
        np.testing.assert_array_equal(matrix.counts, expected.counts)
    total = ConfusionMatrix.of(truth, prediction, CLASSES)
    np.testing.assert_array_equal(add_up(matrices, CLASSES).counts, total.counts)


def test_a_range_starts_at_its_start():
    ones = np.ones(4, np.uint8)
    matrices = count_by_distance(ones, ones, np.float32([0, 10, 50, 1e6]), CLASSES)
    assert [matrix.labelled_points for matrix in matrices] == [1, 1, 0, 0, 0, 2]


@given(points())
def test_the_official_mean_counts_classes_that_do_not_occur_as_zero(pair):
    truth, prediction = pair
    matrix = ConfusionMatrix.of(truth, prediction, CLASSES)
    expected = np.nan_to_num(naive_iou(truth.tolist(), prediction.tolist()))[1:].mean()
    if not truth.any():
        assert np.isnan(matrix.mean_iou_of_benchmark("zero"))
    else:
        assert matrix.mean_iou_of_benchmark("zero") == pytest.approx(expected)
        assert matrix.mean_iou_of_benchmark("zero") <= matrix.mean_iou() + 1e-12


@given(points())
def test_recall_is_the_share_of_each_class_found(pair):
    truth, prediction = pair
    recall = ConfusionMatrix.of(truth, prediction, CLASSES).recall()
    for label in range(CLASSES):
        of_class = prediction[truth == label]
        expected = (of_class == label).mean() if label and len(of_class) else np.nan
        assert recall[label] == pytest.approx(expected, nan_ok=True)
