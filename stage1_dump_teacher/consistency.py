"""How well cached targets fit an augmented cloud: replayed, transported or from anchors, against the live teacher."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.dataset import select_scans
from common.errors import SettingsError
from common.label_map import LabelMap
from common.polar_grid import COARSEST_STRIDE, PolarGrid, voxelise
from common.scan_batch import ScanBatch, batch_scans
from common.semantic_kitti import ScanId, read_points
from common.target_store import TargetEncoding
from common.target_store.scan_file import parse_scan_file, scan_file_bytes
from common.teacher_targets import PillarFeatures, TeacherTargets
from common.transport import carry_through_points, linear_index, rotate_by_bins
from common.view import (
    IDENTITY,
    AnchorSet,
    View,
    ViewPolicy,
    anchor_view,
    apply_view,
    draw_anchored_view,
    draw_view,
    rotated_by_bins,
)
from stage1_dump_teacher.dump import check_classes
from stage1_dump_teacher.pillar_targets import teacher_targets
from stage1_dump_teacher.published_weights import load_teacher
from stage1_dump_teacher.settings import DumpSettings

TEMPERATURE = 10.0
"""Of the logits in the divergence; the inverse of the distillation's scale 0.1."""

DEFAULT_AUGMENTATIONS = (
    *("rotate:0.5", "bins:8", "bins:8.5", "bins:4", "bins:40", "bins:88", "rotate:90", "bins:176"),
    *("flip:y", "flip:x"),
)
AUGMENTATION = re.compile(r"(rotate|bins|flip|scale):(-?\d+(?:\.\d+)?|x|y)")

Teacher = Callable[[ScanBatch], TeacherTargets]


@dataclass(frozen=True)
class Augmentation:
    """A view to measure.

    Attributes:
        name: as given.
        view: the augmentation.
        bins: azimuth bins where it is a rotation that keeps every layer's cells whole, else None.
    """

    name: str
    view: View
    bins: int | None = None


@dataclass(frozen=True)
class LayerAgreement:
    """One layer of targets against the live teacher's.

    Attributes:
        cosine: of the features over the pillars that both have, each side centred by its own channel means.
        relative_l2: |targets - live| / |live| over all pillars of either, absent ones as zeros, as a student sees them.
        reached: share of the live teacher's pillars that the targets have.
    """

    cosine: float
    relative_l2: float
    reached: float


@dataclass(frozen=True)
class Agreement:
    """Targets against the live teacher's on the same cloud.

    Attributes:
        argmax: share of points whose most likely class is the same; "unlabelled" is never an answer.
        divergence: KL(live, targets) at temperature 10, nats, mean over points.
        layers: by teacher layer.
    """

    argmax: float
    divergence: float
    layers: dict[str, LayerAgreement]


@dataclass(frozen=True)
class Row:
    """Agreement of one way to get targets for one augmentation, by scan."""

    augmentation: str
    way: str
    scans: list[Agreement] = field(default_factory=list)


def augmentation_named(name: str, azimuth_bins: int) -> Augmentation:
    """`rotate:DEGREES`, `bins:AZIMUTH_BINS`, `flip:x`, `flip:y` or `scale:FACTOR`.

    Raises:
        SettingsError: it is none of these.
    """
    match = AUGMENTATION.fullmatch(name)
    kind, value = match.groups() if match else ("", "")
    if not match or (kind == "flip") != (value in ("x", "y")) or (kind == "scale" and float(value) <= 0):
        raise SettingsError(
            f"'{name}' is not an augmentation; write rotate:DEGREES, bins:AZIMUTH_BINS, flip:x, flip:y or scale:FACTOR"
        )
    if kind == "flip":
        return Augmentation(name, View(flip_x=value == "x", flip_y=value == "y"))
    number = float(value)
    if kind == "scale":
        return Augmentation(name, View(scale=number))
    if kind == "rotate":
        return Augmentation(name, View(rotation=number))
    view = View(rotation=number * 360.0 / (azimuth_bins - 1))
    return Augmentation(name, view, None if number % COARSEST_STRIDE else int(number))


def measure_transport(
    clouds: Iterable[tuple[ScanId, np.ndarray]],
    augmentations: Sequence[Augmentation],
    teacher: Teacher,
    grid: PolarGrid,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets of the scan as it is, transported to each augmentation; aligned rotations in both ways.

    Yields:
        augmentation, way of transport, agreement; for every scan.
    """
    for _, points in clouds:
        source = cloud_in(points, IDENTITY, grid)
        cached = teacher(source)
        for augmentation in augmentations:
            target = cloud_in(points, augmentation.view, grid)
            live = teacher(target)
            if augmentation.bins is not None:
                shifted = rotate_by_bins(cached, augmentation.bins, source, target)
                yield augmentation.name, "shift", agreement(shifted, live, target.point_voxel)
            carried = carry_through_points(cached, source, target)
            yield augmentation.name, "points", agreement(carried, live, target.point_voxel)


def measure_anchors(
    clouds: Iterable[tuple[ScanId, np.ndarray]],
    anchors: AnchorSet,
    draws: int,
    teacher: Teacher,
    grid: PolarGrid,
    seed: int = 0,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets of the nearest anchor, shifted to flips and aligned rotations drawn as in training.

    Yields:
        distance to the anchor, flip, agreement; for every scan and draw.
    """
    azimuth = grid.shape[1]
    for scan, points in clouds:
        dumped: dict[int, tuple[ScanBatch, TeacherTargets]] = {}
        for epoch in range(draws):
            index, bins = draw_anchored_view(anchors, azimuth, seed, scan, epoch)
            view = anchor_view(anchors, index, azimuth)
            if index not in dumped:
                source = cloud_in(points, view, grid)
                dumped[index] = source, teacher(source)
            source, cached = dumped[index]
            target = cloud_in(points, rotated_by_bins(view, bins, azimuth), grid)
            carried = rotate_by_bins(cached, bins, source, target)
            found = agreement(carried, teacher(target), target.point_voxel)
            yield f"{abs(bins):3d} bins from an anchor", f"flip {anchors.flips[index // anchors.rotations]}", found


def measure_replay(
    clouds: Iterable[tuple[ScanId, np.ndarray]],
    policy: ViewPolicy,
    draws: int,
    encoding: TargetEncoding,
    teacher: Teacher,
    grid: PolarGrid,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets of views 0, 1, ... as they come out of a store: only the encoding stands between them and the teacher.

    Yields:
        view, encoding of the pillar features, agreement; for every scan and view.
    """
    for scan, points in clouds:
        for index in range(draws):
            target = cloud_in(points, draw_view(policy, scan, index), grid)
            live = teacher(target)
            stored = scan_file_bytes(live, grid.shape, encoding, {})
            replayed = parse_scan_file(stored, live.layers)[0].decode()
            name = "the scan as it is" if index == 0 else f"drawn view {index}"
            yield name, encoding.pillar_features, agreement(replayed, live, target.point_voxel)


def cloud_in(points: np.ndarray, view: View, grid: PolarGrid) -> ScanBatch:
    """A scan, float32 [N, 4], in a view and on a grid."""
    return batch_scans([voxelise(apply_view(points, view), grid)], grid.shape)


def rows_of(found: Iterable[tuple[str, str, Agreement]]) -> list[Row]:
    """Agreements gathered by augmentation and way, in the order of their first appearance."""
    rows: dict[tuple[str, str], Row] = {}
    for augmentation, way, one in found:
        rows.setdefault((augmentation, way), Row(augmentation, way)).scans.append(one)
    return list(rows.values())


def mean(agreements: Sequence[Agreement]) -> Agreement:
    """Mean of every number over agreements."""

    def over(numbers: Iterable[float]) -> float:
        return float(np.mean(list(numbers)))

    layers = {
        name: LayerAgreement(
            over(one.layers[name].cosine for one in agreements),
            over(one.layers[name].relative_l2 for one in agreements),
            over(one.layers[name].reached for one in agreements),
        )
        for name in agreements[0].layers
    }
    return Agreement(over(one.argmax for one in agreements), over(one.divergence for one in agreements), layers)


def agreement(targets: TeacherTargets, live: TeacherTargets, point_voxel: torch.Tensor) -> Agreement:
    """Compare targets with the live teacher's on the same cloud.

    Args:
        targets: logits rows as in `live`.
        live: what the teacher says.
        point_voxel: int64 [N], row of each point's voxel.
    """
    points = torch.bincount(point_voxel, minlength=len(live.logits)).double()
    ours, theirs = targets.logits.double(), live.logits.double()
    same = ours[:, 1:].argmax(dim=1) == theirs[:, 1:].argmax(dim=1)
    log_ours, log_theirs = (ours / TEMPERATURE).log_softmax(dim=1), (theirs / TEMPERATURE).log_softmax(dim=1)
    divergence = (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=1)
    return Agreement(
        float((same * points).sum() / points.sum()),
        float((divergence * points).sum() / points.sum()),
        {name: layer_agreement(targets.layers[name], layer) for name, layer in live.layers.items()},
    )


def layer_agreement(targets: PillarFeatures, live: PillarFeatures) -> LayerAgreement:
    """Compare one layer; NaN where the two share no pillar, or features do not vary."""
    ours, theirs = linear_index(targets.pillars, targets.shape), linear_index(live.pillars, live.shape)
    rows, known = torch.isin(ours, theirs), torch.isin(theirs, ours)
    left, right = targets.features[rows].double(), live.features[known].double()
    # Pillars of one side only stand against zeros.
    missed = targets.features[~rows].double().square().sum() + live.features[~known].double().square().sum()
    error = ((left - right).square().sum() + missed).sqrt()
    left_centred, right_centred = left - left.mean(dim=0), right - right.mean(dim=0)
    norms = torch.linalg.vector_norm(left_centred) * torch.linalg.vector_norm(right_centred)
    return LayerAgreement(
        float((left_centred * right_centred).sum() / norms),
        float(error / torch.linalg.vector_norm(live.features.double())),
        float(known.double().mean()),
    )


def live_teacher(checkpoint: Path, settings: DumpSettings, label_map: LabelMap, device: torch.device) -> Teacher:
    """A checkpoint as a function from a cloud to targets on the CPU.

    Raises:
        CheckpointError: it does not load completely.
        DataError: it has other classes than the dataset.
    """
    loaded = load_teacher(checkpoint, device)
    check_classes(loaded.model, label_map)

    def targets(batch: ScanBatch) -> TeacherTargets:
        return teacher_targets(loaded.model, batch.to(device), settings.layers).to("cpu")

    return targets


def spread_clouds(
    data: Path, settings: DumpSettings, label_map: LabelMap, count: int
) -> Iterator[tuple[ScanId, np.ndarray]]:
    """Up to `count` scans of the splits, spread evenly over them."""
    scans = select_scans(data, label_map, settings.splits).scans
    chosen = min(count, len(scans))
    for number in tqdm(range(chosen), unit="scan", desc="consistency"):
        scan = scans[number * len(scans) // chosen]
        yield scan, read_points(data, scan)
