"""Predictions and IoU one point after another, to hold evaluations against."""

from pathlib import Path

import numpy as np
import torch

from common.scans.polar_grid import PolarGrid, bin_indices, to_polar, voxelise
from common.scans.scan_batch import batch_scans
from stage2_train_student.students.polarnet import PolarNet
from tests.shared.reduced import one_thread


def by_hand(student: PolarNet, points: np.ndarray, shape: tuple[int, int, int]) -> list[int]:
    """Class of every point, looked up in the logits of its voxel, one point after another."""
    grid = PolarGrid.named("polarnet", shape)
    batch = batch_scans([voxelise(points, grid)], shape)
    with torch.no_grad(), one_thread():
        logits = student.eval()(batch).voxel_logits
    of_voxel = {tuple(bins[1:]): row for row, bins in enumerate(batch.voxels.tolist())}
    labels = []
    for bins in bin_indices(to_polar(points[:, :3]), grid).tolist():
        scores = logits[of_voxel[tuple(bins)]].tolist()
        labels.append(max(range(1, len(scores)), key=scores.__getitem__))
    return labels


def iou_by_hand(truth: list[int], prediction: list[int], classes: int) -> dict[int, float]:
    """IoU of each class that occurs among labelled points."""
    pairs = [(t, p) for t, p in zip(truth, prediction, strict=True) if t]
    found = {}
    for label in range(1, classes):
        either = sum(label in pair for pair in pairs)
        if either:
            found[label] = sum(pair == (label, label) for pair in pairs) / either
    return found


def student_words(student_file: Path, experiment: Path) -> list[str]:
    return ["--weights", str(student_file), "--experiment", str(experiment), "--device", "cpu"]


def miou_by_hand(iou: dict[int, float], truth: list[int]) -> float:
    """Mean over the classes that occur in the ground truth."""
    occurring = set(truth) - {0}
    return sum(iou[label] for label in occurring) / len(occurring)
