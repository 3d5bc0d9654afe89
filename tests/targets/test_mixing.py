"""Two scans mixed by sectors: every point from one of them, and targets with the points."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.base.errors import SettingsError
from common.scans.polar_grid import ALIGNED_BINS, VoxelisedScan, bin_indices, to_polar, voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from common.targets.mixing import (
    MixedTargets,
    Mixing,
    MixSettings,
    draw_mixing,
    mixed_scan,
    mixed_targets,
    most_sectors,
)
from common.targets.store.scan_file import encoded_as_is
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from tests.shared.reduced import same_targets
from tests.targets.test_composition import (
    AZIMUTH,
    GRID,
    SIGHT,
    STRIDES,
    cloud_of,
    random_points,
    short_sighted_teacher,
)

SCANS = [ScanId("00", f"{frame:06d}") for frame in range(7)]
ALWAYS = MixSettings(probability=1.0)

sectors_and_bins = st.integers(17, 400).flatmap(
    lambda bins: st.tuples(st.integers(1, most_sectors(bins)), st.just(bins))
)


def draw(epoch: int, how: MixSettings = ALWAYS, bins: int = AZIMUTH, scan: ScanId = SCANS[0]) -> Mixing | None:
    return draw_mixing(how, bins, 0, scan, epoch, SCANS)


def labelled(points: np.ndarray) -> np.ndarray:
    """A label for each point that follows from its place, and so is the same in either scan."""
    return (1 + np.abs(points[:, 0] * 7).astype(np.int64) % 19).astype(np.uint8)


def on_grid(points: np.ndarray) -> VoxelisedScan:
    return voxelise(points, GRID, labelled(points))


def same_scan(one: VoxelisedScan, other: VoxelisedScan) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


# Draws


@given(sectors_and_bins, st.integers(0, 50))
def test_sectors_are_of_whole_cells_evenly_spread_and_half_of_the_circle(sectors_and_bins, epoch):
    sectors, bins = sectors_and_bins
    mixing = draw(epoch, MixSettings(probability=1.0, sectors=sectors), bins)
    assert mixing is not None
    count = -(-bins // ALIGNED_BINS)
    of_cells = np.isin(np.arange(count), mixing.cells)
    assert int((of_cells & ~np.roll(of_cells, 1)).sum()) == sectors
    assert abs(2 * len(mixing.cells) - count) <= sectors
    taken = mixing.taken(bins)
    assert taken.shape == (bins,)
    assert not ((1 + np.flatnonzero(np.diff(taken))) % ALIGNED_BINS).any()


def test_draws_depend_on_seed_scan_and_epoch_alone():
    drawn = [draw(epoch, scan=scan) for scan in SCANS for epoch in range(30)]
    assert drawn == [draw(epoch, scan=scan) for scan in SCANS for epoch in range(30)]
    assert len(set(drawn)) > 50
    assert {mixing.partner for mixing in drawn[:30] if mixing} == set(SCANS[1:])
    assert {mixing.cells[0] for mixing in drawn if mixing} >= set(range(1, 12))
    assert draw_mixing(ALWAYS, AZIMUTH, 1, SCANS[0], 0, SCANS) != drawn[0]
    # The same partners and sectors, where there are any, however often scans are mixed.
    seldom = [draw(epoch, MixSettings(probability=0.25), scan=scan) for scan in SCANS for epoch in range(30)]
    mixed = [mixing is not None for mixing in seldom]
    assert 0.15 < np.mean(mixed) < 0.35
    assert all(one == other for one, other in zip(seldom, drawn, strict=True) if one)


# Scans


@settings(max_examples=15)
@given(epoch=st.integers(0, 40), sectors=st.sampled_from([1, 2, 11]))
def test_every_point_comes_from_one_scan_and_lies_in_its_sector(epoch, sectors):
    own, other = random_points(0), random_points(1, 1500)
    taken = draw(epoch, MixSettings(probability=1.0, sectors=sectors)).taken(AZIMUTH)
    mixed = mixed_scan(on_grid(own), on_grid(other), taken)
    within = [taken[bin_indices(to_polar(points[:, :3]), GRID)[:, 1]] for points in (own, other)]
    chosen = np.concatenate((own[~within[0]], other[within[1]]))
    assert same_scan(mixed, on_grid(chosen))
    assert 0 < len(chosen) < len(own) + len(other)


def test_a_scan_mixed_with_itself_is_itself_in_another_order_of_points():
    scan, taken = on_grid(random_points(2)), draw(3).taken(AZIMUTH)
    mixed = mixed_scan(scan, scan, taken)
    order = np.argsort(taken[scan.voxels[scan.point_voxel, 1]], kind="stable")
    assert same_scan(
        mixed, VoxelisedScan(scan.point_features[order], scan.point_voxel[order], scan.voxels, scan.voxel_labels)
    )
    targets = short_sighted_teacher(cloud_of(random_points(2)), random_points(2))
    assert same_targets(mixed_targets(targets, targets, taken, GRID.shape), targets)


def test_all_or_nothing_of_the_other_scan():
    own, other = on_grid(random_points(0)), on_grid(random_points(1))
    assert same_scan(mixed_scan(own, other, np.zeros(AZIMUTH, bool)), own)
    assert same_scan(mixed_scan(own, other, np.ones(AZIMUTH, bool)), other)
    empty = mixed_scan(*(on_grid(half_of(seed, seed == 1)) for seed in (0, 1)), np.arange(AZIMUTH) >= 160)
    assert (len(empty.voxels), len(empty.point_features)) == (0, 0)


def half_of(seed: int, first: bool) -> np.ndarray:
    """Points in the first 160 azimuth bins, or in the others."""
    points = random_points(seed)
    return points[(bin_indices(to_polar(points[:, :3]), GRID)[:, 1] < 160) == first]


# Targets


@pytest.mark.parametrize("sectors", [1, 2])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_targets_are_the_live_ones_out_of_sight_of_the_cuts_and_those_of_the_sources_near_them(sectors, epoch):
    points = [random_points(seed) for seed in (5, 6)]
    clouds = [cloud_of(cloud) for cloud in points]
    sources = [short_sighted_teacher(cloud, own) for cloud, own in zip(clouds, points, strict=True)]
    taken = draw(epoch, MixSettings(probability=1.0, sectors=sectors)).taken(AZIMUTH)
    within = [taken[cloud.voxels[cloud.point_voxel, 2].numpy()] for cloud in clouds]
    mixed_points = np.concatenate((points[0][~within[0]], points[1][within[1]]))
    cloud = cloud_of(mixed_points)
    live, ours = short_sighted_teacher(cloud, mixed_points), mixed_targets(*sources, taken, GRID.shape)
    assert torch.equal(ours.voxels, cloud.voxels)
    cuts = 1 + np.flatnonzero(np.diff(taken))
    far = np.all([(np.arange(AZIMUTH) >= cut + SIGHT) | (np.arange(AZIMUTH) < cut - SIGHT) for cut in cuts], axis=0)
    for name, stride in STRIDES.items():
        maps = [part.layers[name].dense(1)[0] for part in (ours, live, *sources)]
        of_other = torch.from_numpy(taken[::stride])
        assert torch.equal(maps[0], torch.where(of_other, maps[3], maps[2])), name
        whole = torch.from_numpy(far.reshape(-1, stride).all(axis=1))
        assert torch.equal(maps[0][..., whole], maps[1][..., whole]), name
        assert not torch.equal(maps[0], maps[1]), name
    rows = torch.from_numpy(far)[cloud.voxels[:, 2]]
    assert 0 < int(rows.sum()) < len(rows)
    assert torch.equal(ours.logits[rows], live.logits[rows])
    beyond = ours.voxel_layers["up0e"]
    assert torch.equal(beyond.voxels, cloud.voxels)
    assert torch.equal(beyond.features, ours.logits)
    plain = [TeacherTargets(part.voxels, part.logits, part.layers) for part in sources]
    stored = MixedTargets(*(encoded_as_is(part, GRID.shape) for part in plain), taken)
    assert same_targets(stored.to("cpu").decode(), TeacherTargets(ours.voxels, ours.logits, ours.layers))


def test_a_layer_whose_cells_would_be_cut_is_refused():
    cloud = batch_scans([on_grid(random_points(0))], GRID.shape)
    coarse = PillarFeatures(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 2), (1, AZIMUTH // 40))
    targets = TeacherTargets(cloud.voxels, torch.zeros(len(cloud.voxels), 3), {"coarse": coarse})
    with pytest.raises(SettingsError, match="goes through cells of a layer of stride 40; set mix=null"):
        mixed_targets(targets, targets, draw(0).taken(AZIMUTH), GRID.shape)
