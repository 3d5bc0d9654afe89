"""What a picture of a scan is made from: the scan, a student, and a teacher that runs now or ran for a target store."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from common.base.errors import StoreError
from common.scans.dataset import Dataset, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY
from common.targets.store import TargetStore
from common.targets.teacher import Teacher, layer_channels
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.training.predictor import VoxelLogits, most_likely_class
from stage2_train_student.distillation.lwd import pillar_label_weights
from stage2_train_student.evaluation.render import ScanPicture, pillar_map

ScanTargets = Callable[[ScanId, np.ndarray, ScanBatch], TeacherTargets]
"""A teacher: from a scan, its points float32 [N, 4] and its batch to targets."""


def live_teacher(teacher: Teacher, layers: Sequence[str], label_map: LabelMap) -> ScanTargets:
    """A teacher that runs on each scan; of one that has no layers at all the logits alone.

    Raises:
        SettingsError: it lacks a layer, or has other classes than the dataset.
    """
    wanted = list(layer_channels(teacher, layers if teacher.channels else ()))
    fitting = teacher.for_dataset(label_map)
    return lambda scan, points, batch: fitting.targets(batch, wanted)


def cached_teacher(cache: str, layers: Sequence[str], grid: PolarGrid, label_map: LabelMap) -> ScanTargets:
    """Targets of each scan as it is on disk (view 0) from a target store; of one without layers the logits alone.

    Raises:
        StoreError: there is no store, or it does not fit the grid, the classes or the layers.
    """
    store = TargetStore.open(cache)
    wanted = list(layers) if store.identity.layers else []
    store.check_fits(grid, label_map, wanted)

    def targets(scan: ScanId, points: np.ndarray, batch: ScanBatch) -> TeacherTargets:
        found, view = store.read(scan, 0, points, wanted)
        if view != IDENTITY or not torch.equal(found.voxels, batch.voxels.cpu()):
            raise StoreError(
                f"{store.location}: view 0 of scan {scan} is not the scan as it is on disk, so it cannot be drawn "
                "over it. Give the teacher's checkpoint instead (--teacher)."
            )
        return found

    return targets


class Viewers(NamedTuple):
    """Who looks at scans: a student and a teacher, where there are any, on one grid and device.

    `layer` is the teacher layer whose feature norms are drawn, where the teacher says something of it.
    """

    grid: PolarGrid
    device: torch.device
    student: VoxelLogits | None
    teacher: ScanTargets | None
    layer: str


def scan_picture(dataset: Dataset, scan: ScanId, viewers: Viewers) -> ScanPicture:
    """Gather what there is to draw about a scan.

    Raises:
        DataError: the scan cannot be read.
    """
    label_map, (grid, device, student, teacher, layer) = dataset.label_map, viewers
    source = dataset.read(scan)
    voxelised = voxelise_view(source, IDENTITY, grid, label_map)
    batch = batch_scans([voxelised], grid.shape).to(device)

    def of_points(logits: torch.Tensor) -> np.ndarray:
        labels: np.ndarray = most_likely_class(logits).cpu().numpy().astype(np.uint8)[voxelised.point_voxel]
        return labels

    with torch.inference_mode():
        targets = None if teacher is None else teacher(scan, source.points, batch)
        student_labels = None if student is None else of_points(student(batch))
    layers = {} if targets is None else targets.layers
    return ScanPicture(
        title=f"scan {scan}",
        points=source.points,
        truth=source.labels,
        student=student_labels,
        teacher=None if targets is None else of_points(targets.logits),
        label_weights=None if source.labels is None else label_weight_map(batch, label_map),
        feature_norms=feature_norm_map(layers[layer]) if layer in layers else None,
        layer=layer,
    )


def label_weight_map(batch: ScanBatch, label_map: LabelMap) -> np.ndarray:
    """Weight of each pillar in the label-weight term, float32 [R, P]; NaN where no voxel is labelled."""
    class_weights = torch.from_numpy(label_map.class_weights()).to(batch.voxels.device)
    weights = pillar_label_weights(batch, class_weights).cpu().numpy()
    image = pillar_map(batch.pillars[:, 1:].cpu().numpy(), weights, batch.grid_shape[:2])
    image[image == 0] = np.nan
    return image


def feature_norm_map(layer: PillarFeatures) -> np.ndarray:
    """Euclidean length of each pillar's features, float32 [R', P']; NaN where there is no pillar."""
    norms = layer.features.float().norm(dim=1).cpu().numpy()
    return pillar_map(layer.pillars[:, 1:].cpu().numpy(), norms, layer.shape)
