"""How well cached targets fit an augmented cloud: replayed, transported or from anchors, against the live teacher."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.base.errors import SettingsError
from common.scans import view as views
from common.scans.dataset import Dataset, LabelledScan
from common.scans.label_map import LabelMap
from common.scans.polar_grid import COARSEST_STRIDE, PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, AnchoredView, AnchorSet, View, ViewPolicy, apply_view
from common.targets.composition import Anchor, anchored_targets
from common.targets.store import TargetEncoding
from common.targets.store.members import read_members
from common.targets.store.scan_file import scan_file_bytes, targets_of
from common.targets.teacher import check_classes
from common.targets.teacher_targets import TeacherTargets
from common.targets.transport import carry_through_points, rotate_by_bins
from stage1_dump_teacher.consistency.agreement import Agreement, agreement, mean
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teachers.loading import load_named_teacher

DEFAULT_AUGMENTATIONS = (
    *("rotate:0.5", "bins:8", "bins:8.5", "bins:4", "bins:40", "bins:88", "rotate:90", "bins:176"),
    *("flip:y", "flip:x"),
)
NUMBER = r"-?\d+(?:\.\d+)?"
AUGMENTATION = re.compile(
    rf"rotate:(?P<degrees>{NUMBER})|bins:(?P<bins>{NUMBER})|flip:(?P<axis>[xy])|scale:(?P<factor>{NUMBER})"
)

ALL = ("all", "")

LiveTargets = Callable[[ScanBatch], TeacherTargets]


class Augmentation(NamedTuple):
    """A view to measure, under the name that was given.

    `bins` are azimuth bins where it is a rotation that keeps every layer's cells whole, else None.
    """

    name: str
    view: View
    bins: int | None = None


def augmentation_named(name: str, azimuth_bins: int) -> Augmentation:
    """`rotate:DEGREES`, `bins:AZIMUTH_BINS`, `flip:x`, `flip:y` or `scale:FACTOR`.

    Raises:
        SettingsError: it is none of these.
    """
    match = AUGMENTATION.fullmatch(name)
    if match is None or (match["factor"] and float(match["factor"]) <= 0):
        raise SettingsError(
            f"'{name}' is not an augmentation; write rotate:DEGREES, bins:AZIMUTH_BINS, flip:x, flip:y or scale:FACTOR"
        )
    if match["axis"]:
        return Augmentation(name, View(flip_x=match["axis"] == "x", flip_y=match["axis"] == "y"))
    if match["factor"]:
        return Augmentation(name, View(scale=float(match["factor"])))
    if match["degrees"]:
        return Augmentation(name, View(rotation=float(match["degrees"])))
    bins = float(match["bins"])
    view = View(rotation=bins * 360.0 / (azimuth_bins - 1))
    return Augmentation(name, view, None if bins % COARSEST_STRIDE else int(bins))


def measure_transport(
    scans: Iterable[tuple[ScanId, LabelledScan]],
    augmentations: Sequence[Augmentation],
    teacher: LiveTargets,
    grid: PolarGrid,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets of the scan as it is, transported to each augmentation; aligned rotations in both ways.

    Yields:
        augmentation, way of transport, agreement; for every scan.
    """
    for _, source_scan in scans:
        source = cloud_in(source_scan, IDENTITY, grid)
        cached = teacher(source)
        for augmentation in augmentations:
            target = cloud_in(source_scan, augmentation.view, grid)
            live = teacher(target)
            if augmentation.bins is not None:
                shifted = rotate_by_bins(cached, augmentation.bins, source, target)
                yield augmentation.name, "shift", agreement(shifted, live, target)
            carried = carry_through_points(cached, source, target)
            yield augmentation.name, "points", agreement(carried, live, target)


def measure_anchors(
    scans: Iterable[tuple[ScanId, LabelledScan]],
    anchors: AnchorSet,
    draws: int | None,
    teacher: LiveTargets,
    grid: PolarGrid,
    seed: int = 0,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets composed from anchors as in training, for every flip and aligned rotation or some that are drawn.

    Yields:
        distance to the nearest anchor, flip, agreement; for every scan and view.
    """
    azimuth = grid.shape[1]
    for scan, source_scan in scans:
        chosen = views_to_measure(anchors, azimuth, draws, scan, seed)
        needed = {index for seen in chosen for index in (seen.anchor, seen.other) if index is not None}
        dumped_clouds = {
            index: cloud_in(source_scan, views.anchor_view(anchors, index, azimuth), grid) for index in needed
        }
        dumped = {index: teacher(cloud) for index, cloud in dumped_clouds.items()}
        for seen in tqdm(chosen, unit="view", desc=f"scan {scan}", leave=False):
            nearest = Anchor(dumped[seen.anchor], dumped_clouds[seen.anchor], seen.bins)
            other = None
            if seen.other is not None:
                other = Anchor(dumped[seen.other], dumped_clouds[seen.other], seen.other_bins)
            view = views.rotated_by_bins(views.anchor_view(anchors, seen.anchor, azimuth), seen.bins, azimuth)
            target = cloud_in(source_scan, view, grid)
            live = teacher(target) if seen.bins else nearest.targets
            flip = anchors.flips[seen.anchor // anchors.rotations]
            found = agreement(anchored_targets(nearest, other, target), live, target)
            yield f"{abs(seen.bins):3d} bins from an anchor", f"flip {flip}", found


def views_to_measure(
    anchors: AnchorSet, azimuth_bins: int, draws: int | None, scan: ScanId, seed: int
) -> list[AnchoredView]:
    """Different views among those of so many epochs of training, or all that there are."""
    if draws is not None:
        drawn = [views.draw_anchored_view(anchors, azimuth_bins, seed, scan, epoch) for epoch in range(draws)]
        return list(dict.fromkeys(drawn))
    flips, positions = range(len(anchors.flips)), range(views.aligned_rotations(azimuth_bins))
    return [views.from_anchors(anchors, flip, position, azimuth_bins) for flip in flips for position in positions]


def measure_replay(
    scans: Iterable[tuple[ScanId, LabelledScan]],
    policy: ViewPolicy,
    draws: int,
    encoding: TargetEncoding,
    teacher: LiveTargets,
    grid: PolarGrid,
) -> Iterator[tuple[str, str, Agreement]]:
    """Targets of views 0, 1, ... as they come out of a store: only the encoding stands between them and the teacher.

    Yields:
        view, encoding of the pillar features, agreement; for every scan and view.
    """
    for scan, source_scan in scans:
        for index in range(draws):
            target = cloud_in(source_scan, views.draw_view(policy, scan, index), grid)
            live = teacher(target)
            stored = scan_file_bytes(live, grid.shape, encoding, {})
            replayed = targets_of(read_members(stored), live.layers, voxel_features=False).decode()
            name = "the scan as it is" if index == 0 else f"drawn view {index}"
            yield name, encoding.pillar_features, agreement(replayed, live, target)


def cloud_in(scan: LabelledScan, view: View, grid: PolarGrid) -> ScanBatch:
    """A scan in a view and on a grid."""
    classes = 1 if scan.labels is None else int(scan.labels.max()) + 1
    return batch_scans([voxelise(apply_view(scan.points, view), grid, scan.labels, classes)], grid.shape)


def means(found: Iterable[tuple[str, str, Agreement]]) -> dict[tuple[str, str], Agreement]:
    """Means by augmentation and way, in the order of their first appearance, and last of all together."""
    groups: dict[tuple[str, str], list[Agreement]] = {}
    for augmentation, way, one in found:
        groups.setdefault((augmentation, way), []).append(one)
    together = mean([one for group in groups.values() for one in group])
    return {key: mean(group) for key, group in groups.items()} | {ALL: together}


def live_teacher(checkpoint: Path, settings: DumpSettings, label_map: LabelMap, device: torch.device) -> LiveTargets:
    """A checkpoint as a function from a cloud to targets on the CPU.

    Raises:
        CheckpointError: it does not load completely.
        SettingsError: it has other classes than the dataset.
    """
    loaded = load_named_teacher(settings.teacher, checkpoint, device)
    check_classes(loaded, label_map)

    def targets(batch: ScanBatch) -> TeacherTargets:
        return loaded.targets(batch.to(device), settings.layers).to("cpu")

    return targets


def spread_scans(dataset: Dataset, splits: list[str], count: int) -> Iterator[tuple[ScanId, LabelledScan]]:
    """Up to `count` scans of the splits, spread evenly over them."""
    found = dataset.select(splits).scans
    chosen = min(count, len(found))
    for number in tqdm(range(chosen), unit="scan", desc="consistency"):
        scan = found[number * len(found) // chosen]
        yield scan, dataset.read(scan)
