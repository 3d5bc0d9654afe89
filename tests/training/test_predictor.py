"""Predictions averaged over views: each from the untouched scan, in any batches, against the mean by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, apply_view
from common.training.predictor import SCALE, PredictionPlan, Predictor, augmented_view, most_likely_class
from stage2_train_student.evaluation.evaluate import evaluate, student_logits
from stage2_train_student.training.runs import load_student
from tests.golden.golden_files import golden_weights
from tests.shared.kitti import list_scans
from tests.shared.reduced import STREET_GRID, one_thread, reduced_experiment

CPU = torch.device("cpu")
GRID = PolarGrid.named("polarnet", STREET_GRID)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The golden reduced student as a model, in float64: how many scans are in a batch decides no tie by rounding."""
    path = tmp_path_factory.mktemp("student") / "published.pt"
    torch.save(golden_weights("student_reduced", "student."), path)
    model = student_logits(load_student(reduced_experiment(STREET_GRID), path, CPU)[0].double())
    return lambda batch: model(replace(batch, point_features=batch.point_features.double()))


def height_model(batch: ScanBatch) -> torch.Tensor:
    """Logits that depend on a voxel's height only, which no view changes."""
    return torch.from_numpy(np.random.default_rng(1).normal(size=(STREET_GRID[2], 20)))[batch.voxels[:, 3]].float()


def place_model(batch: ScanBatch) -> torch.Tensor:
    """Logits that depend on a voxel's place in a fixed, erratic way, voxel by voxel."""
    linear = (batch.voxels[:, 1] * STREET_GRID[1] + batch.voxels[:, 2]) * STREET_GRID[2] + batch.voxels[:, 3]
    return torch.sin((linear[:, None] + 1.0) * torch.arange(1, 21) * 0.7) * 4


def labels_of(model, root: Path, scans: list[ScanId], label_map: LabelMap, **plan: int) -> list[np.ndarray]:
    with one_thread():
        found = Predictor(model, GRID, CPU, PredictionPlan(**plan)).predict(Dataset.open(root, label_map), scans)
        return [prediction.labels for prediction in found]


def mean_probabilities(model, points: np.ndarray, scan: ScanId, views: int, seed: int) -> np.ndarray:
    """Mean softmax over views of each point, float64 [N, classes - 1], one view after another."""
    total = np.zeros((len(points), 19))
    for index in range(views):
        voxelised = voxelise(apply_view(points, augmented_view(scan, index, seed)), GRID)
        with one_thread(), torch.no_grad():
            logits = model(batch_scans([voxelised], STREET_GRID))
        for row, voxel in enumerate(voxelised.point_voxel.tolist()):
            scores = np.exp(logits[voxel, 1:].double().numpy())
            total[row] += scores / scores.sum()
    return total / views


@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_view_is_the_plain_prediction_exactly(streets, semantic_kitti, student, batch_size):
    scans = list_scans(streets, ["00"])
    found = labels_of(student, streets, scans, semantic_kitti, views=1, seed=5, batch_size=batch_size)
    for scan, labels in zip(scans, found, strict=True):
        voxelised = voxelise(Dataset.open(streets, semantic_kitti).read(scan).points, GRID)
        with one_thread(), torch.no_grad():
            of_voxel = most_likely_class(student(batch_scans([voxelised], STREET_GRID))).numpy()
        np.testing.assert_array_equal(labels, of_voxel[voxelised.point_voxel])


@pytest.mark.parametrize("views", [2, 5])
def test_probabilities_of_points_are_averaged_over_views_of_the_untouched_scan(streets, semantic_kitti, student, views):
    scan = ScanId("08", "000000")
    points = Dataset.open(streets, semantic_kitti).read(scan).points
    [labels] = labels_of(student, streets, [scan], semantic_kitti, views=views, seed=3)
    expected = mean_probabilities(student, points, scan, views, seed=3)
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=1)[clear] + 1)
    plain = labels_of(student, streets, [scan], semantic_kitti)[0]
    assert (labels != plain).any()


def test_the_batch_size_changes_no_label(streets, semantic_kitti):
    scans = list_scans(streets, ["00"])
    expected = labels_of(place_model, streets, scans, semantic_kitti, views=3)
    sizes = []

    def counted(batch: ScanBatch) -> torch.Tensor:
        sizes.append(batch.scans)
        return place_model(batch)

    for batch_size in (2, 4, 7, 100):
        found = labels_of(counted, streets, scans, semantic_kitti, views=3, batch_size=batch_size)
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert sizes == [*[2] * 7, 1, *[4] * 3, 3, 7, 7, 1, 15]


def test_views_that_change_nothing_for_the_model_change_no_label(streets, semantic_kitti):
    scans = list_scans(streets, ["08", "11"])
    plain = labels_of(height_model, streets, scans, semantic_kitti)
    averaged = labels_of(height_model, streets, scans, semantic_kitti, views=6, batch_size=4)
    assert len({label for labels in plain for label in labels.tolist()}) > 3
    assert all(np.array_equal(one, other) for one, other in zip(plain, averaged, strict=True))


def test_a_class_that_is_never_right_is_never_predicted(streets, semantic_kitti):
    def unlabelled(batch: ScanBatch) -> torch.Tensor:
        logits = torch.zeros(len(batch.voxels), 20)
        logits[:, 0], logits[:, 7] = 50.0, 1.0
        return logits

    for views in (1, 3):
        [labels] = labels_of(unlabelled, streets, [ScanId("08", "000000")], semantic_kitti, views=views)
        assert (labels == 7).all()


def test_views_flip_rotate_and_scale_and_follow_from_the_seed_alone():
    scan = ScanId("08", "000123")
    views = [augmented_view(scan, index, 0) for index in range(40)]
    assert views[0] == IDENTITY
    assert views == [augmented_view(scan, index, 0) for index in range(40)]
    assert len({view.rotation for view in views}) == 40
    assert len({(view.flip_x, view.flip_y) for view in views}) == 4
    assert all(abs(view.scale - 1) <= SCALE for view in views)
    assert len({view.scale for view in views}) == 40
    assert all(view.translation == (0, 0, 0) for view in views)
    assert views[1] not in (augmented_view(scan, 1, 1), augmented_view(ScanId("08", "000124"), 1, 0))


def test_evaluation_counts_the_averaged_labels(streets, semantic_kitti):
    scans = list_scans(streets, ["00"])
    plan = PredictionPlan(views=3, seed=2, batch_size=2)
    with one_thread():
        dataset = Dataset.open(streets, semantic_kitti)
        evaluation = evaluate(Predictor(place_model, GRID, CPU, plan), dataset, scans)
    labels = labels_of(place_model, streets, scans, semantic_kitti, views=3, seed=2)
    counts = np.zeros((20, 20), int)
    for scan, predicted in zip(scans, labels, strict=True):
        for pair in zip(
            Dataset.open(streets, semantic_kitti).read(scan).labels.tolist(), predicted.tolist(), strict=True
        ):
            counts[pair] += 1
    np.testing.assert_array_equal(evaluation.matrix.counts, counts)
