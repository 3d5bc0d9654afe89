"""How well cached targets fit an augmented cloud, against the live teacher: moved, composed, replayed or mixed."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common.base.devices import set_float32_precision
from common.base.errors import SettingsError
from common.base.text import count_text
from common.scans import view as views
from common.scans.dataset import Dataset, LabelledScan, evenly, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.polar_grid import COARSEST_STRIDE
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, AnchoredView, AnchorSet, View, ViewPolicy
from common.targets.composition import Anchor, anchored_targets
from common.targets.mixing import MixSettings, draw_mixing, mixed_targets, most_sectors
from common.targets.store import TargetEncoding
from common.targets.store.layout import FileLayout, attributes_of
from common.targets.store.members import read_members
from common.targets.store.scan_file import scan_file_bytes, targets_of
from common.targets.teacher_targets import TeacherTargets
from common.targets.transport import carry_through_points, rotate_by_bins
from stage1_dump_teacher.consistency.agreement import Agreement, agreement, mean
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.loading import load_teachers

DEFAULT_AUGMENTATIONS = (
    *("rotate:0.5", "bins:8", "bins:8.5", "bins:4", "bins:40", "bins:88", "rotate:90", "bins:176"),
    *("flip:y", "flip:x"),
)
AUGMENTATION = re.compile(r"flip:[xy]|(rotate|bins|scale):-?\d+(\.\d+)?")

Scans = Iterable[tuple[ScanId, LabelledScan]]
LiveTeacher = Callable[[LabelledScan, View], tuple[ScanBatch, TeacherTargets]]
"""Sees a scan in a view: the batch that it is, and what the teacher says of it."""

Found = Iterator[tuple[str, str, Agreement]]
"""What was done to a scan, how its targets were carried there, and how they agree with the live teacher's."""

SEED = 0
"""Of the views that are drawn from anchors, and of the sectors of mixed scans."""

SECTORS = (1, 2, 4)
"""Numbers of them that scans are mixed by."""


class Augmentation(NamedTuple):
    """A view to measure, under the name that was given.

    `bins` are azimuth bins where it is a rotation that keeps every layer's cells whole, else None.
    """

    name: str
    view: View
    bins: int | None = None


def augmentation_named(name: str, azimuth_bins: int) -> Augmentation:
    """`rotate:DEGREES`, `bins:AZIMUTH_BINS`, `flip:x`, `flip:y` or `scale:FACTOR`; SettingsError for anything else."""
    kind, _, value = name.partition(":")
    if AUGMENTATION.fullmatch(name) is None or (kind == "scale" and float(value) <= 0):
        raise SettingsError(
            f"'{name}' is not an augmentation; write rotate:DEGREES, bins:AZIMUTH_BINS, flip:x, flip:y or scale:FACTOR"
        )
    if kind == "flip":
        return Augmentation(name, View(flip_x=value == "x", flip_y=value == "y"))
    if kind == "scale":
        return Augmentation(name, View(scale=float(value)))
    if kind == "rotate":
        return Augmentation(name, View(rotation=float(value)))
    bins = float(value)
    view = View(rotation=bins * 360.0 / (azimuth_bins - 1))
    return Augmentation(name, view, None if bins % COARSEST_STRIDE else int(bins))


def measure_transport(scans: Scans, see: LiveTeacher, augmentations: Sequence[Augmentation]) -> Found:
    """Targets of the scan as it is, carried to each augmentation through points; to aligned rotations also shifted."""
    for _, scan in scans:
        source, cached = see(scan, IDENTITY)
        for name, view, bins in augmentations:
            target, live = see(scan, view)
            if bins is not None:
                yield name, "shift", agreement(rotate_by_bins(cached, bins, source, target), live, target)
            yield name, "points", agreement(carry_through_points(cached, source, target), live, target)


def measure_anchors(scans: Scans, see: LiveTeacher, anchors: AnchorSet, azimuth: int, draws: int | None) -> Found:
    """Targets composed from anchors as in training, for every flip and aligned rotation or some that are drawn.

    Yields them by distance to the nearest anchor, and by flip.
    """
    for name, scan in scans:
        chosen = views_to_measure(anchors, azimuth, draws, name)
        needed = {index for seen in chosen for index in (seen.anchor, seen.other) if index is not None}
        dumped = {index: see(scan, views.anchor_view(anchors, index, azimuth)) for index in needed}
        for seen in tqdm(chosen, unit="view", desc=f"scan {name}", leave=False):
            cloud, targets = dumped[seen.anchor]
            nearest, other = Anchor(targets, cloud, seen.bins), None
            if seen.other is not None:
                other = Anchor(dumped[seen.other][1], dumped[seen.other][0], seen.other_bins)
            view = views.rotated_by_bins(views.anchor_view(anchors, seen.anchor, azimuth), seen.bins, azimuth)
            target, live = see(scan, view) if seen.bins else (cloud, targets)
            flip = anchors.flips[seen.anchor // anchors.rotations]
            found = agreement(anchored_targets(nearest, other, target), live, target)
            yield f"{abs(seen.bins):3d} bins from an anchor", f"flip {flip}", found


def views_to_measure(anchors: AnchorSet, azimuth_bins: int, draws: int | None, scan: ScanId) -> list[AnchoredView]:
    """Different views among those of so many epochs of training, or all that there are."""
    if draws is not None:
        drawn = [views.draw_anchored_view(anchors, azimuth_bins, SEED, scan, epoch) for epoch in range(draws)]
        return list(dict.fromkeys(drawn))
    flips, positions = range(len(anchors.flips)), range(views.aligned_rotations(azimuth_bins))
    return [views.from_anchors(anchors, flip, position, azimuth_bins) for flip in flips for position in positions]


def measure_replay(scans: Scans, see: LiveTeacher, policy: ViewPolicy, draws: int, encoding: TargetEncoding) -> Found:
    """Targets of views 0, 1, ... as they come out of a store: only the encoding stands between them and the teacher."""
    for name, scan in scans:
        for index in range(draws):
            target, live = see(scan, views.draw_view(policy, name, index))
            stored = scan_file_bytes(live, target.grid_shape, encoding, {})
            members = read_members(stored)
            layout = attributes_of(members, FileLayout)
            replayed = targets_of(members, layout, live.layers, voxel_features=False).decode()
            view = "the scan as it is" if index == 0 else f"drawn view {index}"
            yield view, encoding.pillar_features, agreement(replayed, live, target)


def measure_mix(scans: Scans, see: LiveTeacher, azimuth: int, draws: int) -> Found:
    """Targets of two scans as they are, mixed by sectors as in training: each scan with the one before it.

    Raises:
        SettingsError: there are no two scans, or the grid has no room for a sector.
    """
    read = list(scans)
    fitting = [sectors for sectors in SECTORS if sectors <= most_sectors(azimuth)]
    if len(read) < 2 or not fitting:
        raise SettingsError("policy mix needs two scans at least (--scans 2), and more than 16 azimuth bins")
    seen = ((name, scan, *see(scan, IDENTITY)) for name, scan in read)
    for (before, other, other_cloud, other_targets), (name, own, own_cloud, own_targets) in pairwise(seen):
        for sectors in fitting:
            settings = MixSettings(probability=1.0, sectors=sectors)
            for draw in range(draws):
                mixing = draw_mixing(settings, azimuth, SEED, name, draw, (before, name))
                assert mixing is not None
                taken = mixing.taken(azimuth)
                kept = [points_within(own_cloud, ~taken), points_within(other_cloud, taken)]
                cloud, live = see(joined((own, other), kept), IDENTITY)
                targets = mixed_targets(own_targets, other_targets, taken, cloud.grid_shape)
                cuts = (1 + np.flatnonzero(np.diff(taken))).tolist()
                yield count_text(sectors, "sector"), "swapped", agreement(targets, live, cloud, cuts)


def points_within(cloud: ScanBatch, bins: np.ndarray) -> np.ndarray:
    """Which points of a scan lie in some azimuth bins: bool [azimuth bins] to bool [N]."""
    inside: np.ndarray = bins[cloud.voxels[cloud.point_voxel, 2].numpy()]
    return inside


def joined(scans: Sequence[LabelledScan], kept: Sequence[np.ndarray]) -> LabelledScan:
    """Some points of each of some scans as one; without labels where one of them has none."""
    points = np.concatenate([scan.points[rows] for scan, rows in zip(scans, kept, strict=True)])
    labels = [scan.labels[rows] for scan, rows in zip(scans, kept, strict=True) if scan.labels is not None]
    return LabelledScan(points, np.concatenate(labels) if len(labels) == len(scans) else None)


def means(found: Iterable[tuple[str, str, Agreement]]) -> dict[tuple[str, str], Agreement]:
    """Means by augmentation and way, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Agreement]] = {}
    for augmentation, way, one in found:
        groups.setdefault((augmentation, way), []).append(one)
    return {key: mean(group) for key, group in groups.items()}


def live_teacher(checkpoint: Path, settings: DumpSettings, label_map: LabelMap, device: torch.device) -> LiveTeacher:
    """A checkpoint as a function from a scan and a view to its batch and targets, both on the CPU.

    Raises:
        CheckpointError: it does not load completely.
        SettingsError: it has other classes than the dataset, or does not compute in the precision on this device.
    """
    set_float32_precision(tf32=settings.precision == "tf32")
    grid = settings.grid.grid()
    teacher = load_teachers(settings, [checkpoint], label_map, grid, device)

    def see(scan: LabelledScan, view: View) -> tuple[ScanBatch, TeacherTargets]:
        batch = batch_scans([voxelise_view(scan, view, grid, label_map)], grid.shape)
        return batch, teacher.targets(batch.to(device), settings.layers).to("cpu")

    return see


def spread_scans(dataset: Dataset, splits: list[str], count: int) -> Iterator[tuple[ScanId, LabelledScan]]:
    """Up to `count` scans of the splits, spread evenly over them."""
    for scan in tqdm(evenly(dataset.select(splits).scans, count), unit="scan", desc="consistency"):
        yield scan, dataset.read(scan)
