"""Targets composed of two anchors: exact for a teacher that sees no farther than the border allows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.base.errors import SettingsError, StoreError
from common.scans.polar_grid import ALIGNED_BINS, PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scatter import segment_max
from common.scans.view import AnchorSet, aligned_rotations, anchor_view, apply_view, from_anchors, rotated_by_bins
from common.targets.composition import BORDER_BINS, Anchor, anchored_targets, other_sector
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures
from common.targets.transport import rotate_by_bins
from tests.shared.reduced import same_targets

GRID = PolarGrid.named("polarnet", (16, 360, 8))
AZIMUTH = GRID.shape[1]
STRIDES = {"up0e": 1, "down1c": 2, "down3c": 8}
SIGHT = 16
"""Azimuth bins that the teacher below sees to either side, unless the border is nearer."""


def random_points(seed: int, count: int = 2000) -> np.ndarray:
    """Points well inside their bins, and inside those that they get into by flips and rotations by whole bins."""
    generator = np.random.default_rng(seed)
    bins = generator.integers(0, np.array(GRID.shape) - 1, (count, 3)) + generator.uniform(0.1, 0.4, (count, 3))
    rho, phi, z = (bins * GRID.interval + np.array(GRID.minimum)).T
    return np.stack((rho * np.cos(phi), rho * np.sin(phi), z, generator.uniform(size=count)), 1).astype(np.float32)


def short_sighted_teacher(cloud: ScanBatch, points: np.ndarray) -> TeacherTargets:
    """Of each cell the largest height and remission within `SIGHT` bins of azimuth, never across phi = +-pi."""
    values, bins = torch.from_numpy(points[:, 2:]), cloud.voxels[cloud.point_voxel]
    layers = {}
    for name, stride in STRIDES.items():
        cells, rows = torch.unique(bins[:, :3] // torch.tensor([1, stride, stride]), dim=0, return_inverse=True)
        shape = (GRID.shape[0] // stride, AZIMUTH // stride)
        near = PillarFeatures(cells, segment_max(values, rows, len(cells)), shape).dense(1)
        # Below anything that a point can say, so that empty cells say nothing.
        near[near == 0] = -9.0
        reach = SIGHT // stride
        seen = torch.nn.functional.max_pool2d(near, (1, 2 * reach + 1), stride=1, padding=(0, reach))
        layers[name] = PillarFeatures(cells, seen[0][:, cells[:, 1], cells[:, 2]].T.contiguous(), shape)
    seen = layers["up0e"].features[cloud.voxel_pillar]
    logits = torch.cat((seen, segment_max(values, cloud.point_voxel, len(cloud.voxels))), dim=1)
    return TeacherTargets(cloud.voxels, logits, layers, {"up0e": VoxelFeatures(cloud.voxels, logits, GRID.shape)})


def composed(
    points: np.ndarray, anchors: AnchorSet, flip: int, position: int
) -> tuple[TeacherTargets, TeacherTargets, Anchor, ScanBatch]:
    """What the anchors make of a view, what the teacher says about it, the nearest anchor, and the view's cloud."""

    def anchor(index: int, bins: int) -> Anchor:
        cloud = cloud_of(apply_view(points, anchor_view(anchors, index, AZIMUTH)))
        return Anchor(short_sighted_teacher(cloud, points), cloud, bins)

    seen = from_anchors(anchors, flip, position, AZIMUTH)
    nearest = anchor(seen.anchor, seen.bins)
    other = None if seen.other is None else anchor(seen.other, seen.other_bins)
    view = rotated_by_bins(anchor_view(anchors, seen.anchor, AZIMUTH), seen.bins, AZIMUTH)
    target = cloud_of(apply_view(points, view))
    return anchored_targets(nearest, other, target), short_sighted_teacher(target, points), nearest, target


def cloud_of(points: np.ndarray) -> ScanBatch:
    return batch_scans([voxelise(points, GRID)], GRID.shape)


def away_from_border(azimuth: torch.Tensor) -> torch.Tensor:
    """Which azimuth bins the border at phi = +-pi is out of sight of, for whole cells of every layer."""
    return (azimuth >= SIGHT) & (azimuth < (AZIMUTH - 1 - SIGHT) // 8 * 8 - 8)


def wrong_places(ours: TeacherTargets, live: TeacherTargets) -> dict[str, int]:
    """Sites and voxels away from the border that differ in place or value, by layer."""
    found = {}
    for name, stride in STRIDES.items():
        maps = [part.layers[name].dense(1)[0].permute(1, 2, 0) for part in (ours, live)]
        inside = away_from_border(torch.arange(AZIMUTH // stride) * stride)
        assert int((maps[1][:, inside] != 0).sum()) > 0
        found[name] = int((maps[0] != maps[1])[:, inside].any(dim=2).sum())
    inside = away_from_border(live.voxels[:, 2])
    found["logits"] = int((ours.logits != live.logits)[inside].any(dim=1).sum())
    return found


NOTHING = dict.fromkeys([*STRIDES, "logits"], 0)
sets = st.builds(
    AnchorSet, flips=st.sampled_from([["none", "y"], ["none", "x"]]), rotations=st.sampled_from([3, 4, 5, 8])
)


@settings(max_examples=25)
@given(
    anchors=sets,
    flip=st.integers(0, 1),
    position=st.integers(0, aligned_rotations(AZIMUTH) - 1),
    seed=st.integers(0, 3),
)
def test_the_anchors_give_the_live_answer_wherever_the_new_border_is_out_of_sight(anchors, flip, position, seed):
    ours, live, _, _ = composed(random_points(seed), anchors, flip, position)
    assert torch.equal(ours.voxels, live.voxels)
    assert wrong_places(ours, live) == NOTHING


def test_one_anchor_alone_does_not():
    points = random_points(1)
    for position in (2, 5):
        ours, live, nearest, target = composed(points, AnchorSet(), 0, position)
        alone = rotate_by_bins(nearest.targets, nearest.bins, nearest.cloud, target)
        assert wrong_places(ours, live) == NOTHING
        assert min(wrong_places(alone, live).values()) > 0
    lone, live, nearest, target = composed(points, AnchorSet(rotations=1), 0, 5)
    assert same_targets(lone, rotate_by_bins(nearest.targets, nearest.bins, nearest.cloud, target))


@pytest.mark.parametrize("position", [0, 7, 22])
def test_an_anchor_itself_is_given_back(position):
    ours, live, _, _ = composed(random_points(2), AnchorSet(), 1, position)
    assert same_targets(ours, live)


def test_the_last_rotations_of_the_circle_are_composed_like_any_other():
    for position in (20, 21):
        seen = from_anchors(AnchorSet(), 0, position, AZIMUTH)
        assert (seen.anchor, seen.other) == (3, 2)
        assert seen.bins == 16 * (position - 22)
        ours, live, _, _ = composed(random_points(3), AnchorSet(), 0, position)
        assert wrong_places(ours, live) == NOTHING


def test_voxel_features_are_composed_too():
    ours, live, _, _ = composed(random_points(4), AnchorSet(), 0, 10)
    inside = away_from_border(live.voxels[:, 2])
    left, right = ours.voxel_layers["up0e"], live.voxel_layers["up0e"]
    assert torch.equal(left.voxels, right.voxels)
    assert torch.equal(left.features[inside], right.features[inside])


@given(position=st.integers(0, 22), rotations=st.integers(2, 23))
def test_the_other_anchor_serves_what_crossed_the_border_and_never_its_own_border(position, rotations):
    seen = from_anchors(AnchorSet(rotations=rotations), 0, position, AZIMUTH)
    if seen.other is None:
        assert seen.bins == 0
        return
    assert seen.bins * seen.other_bins < 0
    served = other_sector(seen.bins, seen.other_bins, AZIMUTH)
    circle = AZIMUTH - 1
    crossed = range(seen.bins) if seen.bins > 0 else range(circle + seen.bins, circle)
    assert set(crossed) <= set(served)
    assert len(served) <= abs(seen.bins) + BORDER_BINS + ALIGNED_BINS
    border = seen.other_bins % circle
    assert not served.start < border < served.stop
    assert served.start % ALIGNED_BINS == 0
    assert served.stop % ALIGNED_BINS == 0 or served.stop == AZIMUTH


def test_what_does_not_belong_together_is_refused():
    points, others = random_points(5), random_points(6)
    cloud, target = cloud_of(points), cloud_of(apply_view(points, anchor_view(AnchorSet(rotations=23), 1, AZIMUTH)))
    nearest = Anchor(short_sighted_teacher(cloud, points), cloud, 16)
    stranger = Anchor(short_sighted_teacher(cloud_of(others), others), cloud, -16)
    with pytest.raises(StoreError, match="belong to another cloud"):
        anchored_targets(nearest, stranger, target)
    with pytest.raises(SettingsError, match="rotated by 16 and 32 bins; they must lie on both sides"):
        anchored_targets(nearest, nearest._replace(bins=32), target)
    with pytest.raises(SettingsError, match="4 azimuth bins cuts the cells"):
        anchored_targets(nearest._replace(bins=4), nearest._replace(bins=-4), target)
