"""mIoU over all points of a dataset, and prediction files for the benchmark."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.dataset import read_scan, voxelise_view
from common.errors import DataError
from common.files import write_atomically
from common.label_map import LabelMap
from common.metrics import ConfusionMatrix
from common.overlap import started_ahead
from common.polar_grid import PolarGrid
from common.scan_batch import ScanBatch, batch_scans
from common.semantic_kitti import ScanId, has_labels
from common.view import IDENTITY
from stage2_train_student.polarnet import PolarNet

VoxelLogits = Callable[[ScanBatch], torch.Tensor]


def student_logits(student: PolarNet) -> VoxelLogits:
    """A student as a function from a batch to voxel logits; puts it into eval mode."""
    student.eval()
    return lambda batch: student(batch).voxel_logits


def predictions(
    model: VoxelLogits,
    root: Path,
    scans: list[ScanId],
    grid: PolarGrid,
    label_map: LabelMap,
    device: torch.device,
    progress: str,
) -> Iterator[tuple[ScanId, np.ndarray, np.ndarray | None]]:
    """Predict every point of every scan.

    Yields:
        scan, predicted training labels uint8 [N] in 1..classes-1, ground truth uint8 [N] or None.
    """

    def prepare(scan: ScanId):  # type: ignore[no-untyped-def]
        source = read_scan(root, scan, label_map)
        return source, voxelise_view(source, IDENTITY, grid, label_map)

    with tqdm(total=len(scans), unit="scan", desc=progress) as bar:
        for scan, future in started_ahead(prepare, scans):
            source, voxelised = future.result()
            batch = batch_scans([voxelised], grid.shape).to(device)
            with torch.inference_mode():
                labels = most_likely_class(model(batch)).cpu().numpy().astype(np.uint8)
            yield scan, labels[voxelised.point_voxel], source.labels
            bar.update()


def most_likely_class(logits: torch.Tensor) -> torch.Tensor:
    """Class of highest logit, int64 [V] from float [V, classes]; never 0, since "unlabelled" is never right."""
    return logits[:, 1:].argmax(dim=1) + 1


def evaluate(
    model: VoxelLogits,
    root: Path,
    scans: list[ScanId],
    grid: PolarGrid,
    label_map: LabelMap,
    device: torch.device,
    progress: str = "evaluate",
) -> ConfusionMatrix:
    """Confusion matrix over all points of all scans.

    Raises:
        DataError: a scan has no labels.
    """
    refuse_unlabelled(root, scans)
    classes = len(label_map.classes)
    matrix = ConfusionMatrix.empty(classes)
    for _, predicted, truth in predictions(model, root, scans, grid, label_map, device, progress):
        assert truth is not None
        matrix += ConfusionMatrix.of(truth, predicted, classes)
    return matrix


def refuse_unlabelled(root: Path, scans: list[ScanId]) -> None:
    """Say that scans cannot be evaluated before time is spent on them.

    Raises:
        DataError: a scan has no labels; says how many, and the first.
    """
    unlabelled = [scan for scan in scans if not has_labels(root, scan)]
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(scans)} scans have no labels, the first is {unlabelled[0]}, so mIoU cannot "
            "be computed. Choose labelled splits; predict needs no labels."
        )


def predict(
    model: VoxelLogits,
    root: Path,
    scans: list[ScanId],
    grid: PolarGrid,
    label_map: LabelMap,
    device: torch.device,
    out: Path,
) -> int:
    """Write `<out>/sequences/00/predictions/000000.label` for every scan: one raw id, uint32, for each point.

    Returns:
        number of files written.
    """
    for scan, predicted, _ in predictions(model, root, scans, grid, label_map, device, "predict"):
        path = out / "sequences" / scan.sequence / "predictions" / f"{scan.frame}.label"
        write_atomically(path, label_map.to_raw(predicted).astype("<u4").tobytes())
    return len(scans)


def report(matrix: ConfusionMatrix, label_map: LabelMap) -> dict[str, Any]:
    """Numbers of an evaluation, ready for JSON: shares in 0..1, None for a class, or points, that do not occur."""
    return {
        "miou": known(matrix.mean_iou()),
        "accuracy": known(matrix.accuracy()),
        "points": matrix.labelled_points,
        "iou": dict(zip(label_map.names[1:], map(known, matrix.iou()[1:]), strict=True)),
    }


def known(share: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if np.isnan(share) else float(share)


def percent(share: float | None) -> str:
    """A share as text, `-` where there is none."""
    return "-" if share is None else f"{100 * share:6.2f}"


def table(numbers: dict[str, Any]) -> str:
    """An evaluation as text."""
    rows = [f"{name:>16}  {percent(iou)}" for name, iou in numbers["iou"].items()]
    head = f"{'class':>16}  IoU in percent ('-': does not occur)"
    foot = f"{'mIoU':>16}  {percent(numbers['miou'])}    accuracy {percent(numbers['accuracy'])}    "
    return "\n".join([head, *rows, f"{foot}labelled points {numbers['points']}"])


def write_report(path: Path, numbers: dict[str, Any]) -> None:
    """Write the numbers as JSON."""
    write_atomically(path, (json.dumps(numbers, indent=1) + "\n").encode())
