"""Targets moved with the scene: what a rotation by whole bins does to sites, and what points carry."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.base.errors import SettingsError, StoreError
from common.scans.polar_grid import PolarGrid, bin_indices, to_polar, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.view import IDENTITY, View, apply_view, bin_degrees
from common.targets.teacher_targets import PillarFeatures, TeacherTargets, VoxelFeatures, batch_targets
from common.targets.transport import carried_logits, carry_through_points, linear_index, rotate_by_bins, rotated_sites
from tests.shared.reduced import same_targets

FULL = PolarGrid.named("polarnet")
SMALL = PolarGrid.named("polarnet", (16, 40, 8))
STRIDES = {"up0e": 1, "down1c": 2, "down3c": 8}


def points_in(bins: np.ndarray, grid: PolarGrid, seed: int = 0) -> np.ndarray:
    """One point well inside each bin: int [N, 3] to float32 [N, 4]."""
    generator = np.random.default_rng(seed)
    inside = bins + generator.uniform(0.2, 0.8, bins.shape)
    rho, phi, z = (inside * grid.interval + np.array(grid.minimum)).T
    return np.stack((rho * np.cos(phi), rho * np.sin(phi), z, generator.uniform(size=len(bins))), 1).astype(np.float32)


def random_points(count: int = 400, seed: int = 0, grid: PolarGrid = SMALL) -> np.ndarray:
    generator = np.random.default_rng(seed)
    # Bins next to the last ones are as far as a point gets that is not clipped.
    return points_in(generator.integers(0, np.array(grid.shape) - 1, (count, 3)), grid, seed)


def cloud(points: np.ndarray, view: View = IDENTITY, grid: PolarGrid = SMALL) -> ScanBatch:
    return batch_scans([voxelise(apply_view(points, view), grid)], grid.shape)


def turned(bins: int, grid: PolarGrid = SMALL) -> View:
    return View(rotation=bins * bin_degrees(grid.shape[1]))


def made_up_teacher(batch: ScanBatch, points: np.ndarray) -> TeacherTargets:
    """A teacher that no rotation about z changes: of each cell the largest distance, height and remission."""
    answers = np.stack((np.linalg.norm(points[:, :2], axis=1).round(3), points[:, 2], points[:, 3]), axis=1)
    values, bins = torch.from_numpy(answers.astype(np.float32)), batch.voxels[batch.point_voxel]
    layers = {}
    for name, stride in STRIDES.items():
        cells, rows = torch.unique(torch.cat((bins[:, :1], bins[:, 1:3] // stride), 1), dim=0, return_inverse=True)
        features = torch.stack([values[rows == row].amax(0) for row in range(len(cells))])
        layers[name] = PillarFeatures(cells, features, (batch.grid_shape[0] // stride, batch.grid_shape[1] // stride))
    logits = torch.stack([values[batch.point_voxel == row].amax(0) for row in range(len(batch.voxels))])
    return TeacherTargets(batch.voxels, logits, layers)


# The facts


@given(bins=st.integers(-400, 400))
def test_a_rotation_by_whole_bins_moves_every_bin_by_as_many_modulo_all_bins_but_one(bins):
    azimuth = np.arange(359)
    points = points_in(np.stack((azimuth + 50, azimuth, azimuth % 31), axis=1), FULL)
    moved = bin_indices(to_polar(apply_view(points, turned(bins, FULL))[:, :3]), FULL)
    np.testing.assert_array_equal(moved[:, 1], (azimuth + bins) % 359)
    np.testing.assert_array_equal(moved[:, [0, 2]], np.stack((azimuth + 50, azimuth % 31), axis=1))


def test_the_last_bin_holds_the_half_line_behind_the_sensor_only():
    behind = np.array([[-10.0, 0.0, 0.0], [-10.0, -1e-3, 0.0], [-10.0, 1e-3, 0.0]], np.float32)
    assert bin_indices(to_polar(behind), FULL)[:, 1].tolist() == [359, 0, 358]


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@given(steps=st.integers(-60, 60))
def test_every_site_of_a_strided_layer_has_a_place_of_its_own(stride, steps):
    sizes = (3, 360 // stride)
    rho, phi = np.indices((3, 359 if stride == 1 else sizes[1])).reshape(2, -1)
    sites = torch.from_numpy(np.stack((np.zeros_like(rho), rho, phi), axis=1))
    moved = rotated_sites(sites, sizes, steps * stride, 360)
    assert torch.equal(torch.unique(linear_index(moved, sizes)), linear_index(sites, sizes))
    assert torch.equal(rotated_sites(moved, sizes, -steps * stride, 360), sites)


# Rotations by whole bins


@given(steps=st.integers(-3, 3), seed=st.integers(0, 5))
def test_rotated_targets_are_those_of_the_rotated_cloud_up_to_the_sector_that_crosses_the_border(steps, seed):
    points, bins = random_points(seed=seed), 8 * steps
    source, target = cloud(points), cloud(points, turned(bins))
    moved = rotate_by_bins(made_up_teacher(source, points), bins, source, target)
    live = made_up_teacher(target, points)
    assert torch.equal(moved.voxels, live.voxels)
    assert torch.equal(moved.logits, live.logits)
    for name, stride in STRIDES.items():
        ours, theirs = moved.layers[name], live.layers[name]
        assert ours.shape == theirs.shape
        if stride == 1 or not bins:
            whole = torch.ones(40, dtype=torch.bool)
        else:
            # Cells that neither points from across phi = pi nor the border itself have got into.
            cells, shift = torch.arange(40 // stride), bins // stride
            whole = (cells >= max(shift, 0)) & (cells < 40 // stride - 1 + min(shift, 0))
        pairs = []
        for part in (ours, theirs):
            inside = whole[part.pillars[:, 2]]
            pairs.append((part.pillars[inside], part.features[inside]))
        assert len(pairs[0][0]) > 0
        assert torch.equal(pairs[0][0], pairs[1][0]), name
        assert torch.equal(pairs[0][1], pairs[1][1]), name


@given(steps=st.integers(-30, 30))
def test_there_and_back_is_where_it_was(steps):
    points = random_points(seed=1)
    source, target = cloud(points), cloud(points, turned(8 * steps))
    targets = made_up_teacher(source, points)
    there = rotate_by_bins(targets, 8 * steps, source, target)
    assert same_targets(rotate_by_bins(there, -8 * steps, target, source), targets)


def test_sites_come_out_sorted_and_voxel_features_move_too():
    points = random_points(seed=2)
    source, target = cloud(points), cloud(points, turned(16))
    features = torch.arange(len(source.voxels), dtype=torch.float32)[:, None]
    plain = TeacherTargets(source.voxels, features, {}, {"up0e": VoxelFeatures(source.voxels, features, SMALL.shape)})
    moved = rotate_by_bins(plain, 16, source, target).voxel_layers["up0e"]
    assert torch.equal(moved.voxels, target.voxels)
    known = dict(zip(map(tuple, source.voxels.tolist()), features[:, 0].tolist(), strict=True))
    for (_, rho, phi, z), value in zip(moved.voxels.tolist(), moved.features[:, 0].tolist(), strict=True):
        assert known[0, rho, (phi - 16) % 39, z] == value


def test_the_last_bin_falls_together_with_the_first_and_the_larger_feature_stays():
    pillars = torch.tensor([[0, 4, 0], [0, 4, 38], [0, 4, 39], [0, 5, 39]])
    features = torch.tensor([[1.0, 9.0], [7.0, 7.0], [3.0, 2.0], [4.0, 4.0]])
    points = random_points(seed=3)
    source, target = cloud(points), cloud(points, turned(8))
    targets = TeacherTargets(
        source.voxels, torch.zeros(len(source.voxels), 2), {"up0e": PillarFeatures(pillars, features, (16, 40))}
    )
    moved = rotate_by_bins(targets, 8, source, target).layers["up0e"]
    assert moved.pillars.tolist() == [[0, 4, 7], [0, 4, 8], [0, 5, 8]]
    assert moved.features.tolist() == [[7.0, 7.0], [3.0, 9.0], [4.0, 4.0]]


def test_a_rotation_that_cuts_cells_is_refused():
    points = random_points()
    source, target = cloud(points), cloud(points, turned(4))
    with pytest.raises(SettingsError, match="4 azimuth bins cuts the cells of a layer of stride 8"):
        rotate_by_bins(made_up_teacher(source, points), 4, source, target)


@pytest.mark.parametrize("transport", [lambda *clouds: rotate_by_bins(clouds[0], 8, *clouds[1:]), carry_through_points])
def test_targets_of_another_cloud_and_clouds_of_other_points_are_refused(transport):
    points, others = random_points(seed=1), random_points(seed=2)
    source, target = cloud(points), cloud(points, turned(8))
    with pytest.raises(StoreError, match="belong to another cloud"):
        transport(made_up_teacher(cloud(others), others), source, target)
    with pytest.raises(StoreError, match="cloud of 400 points cannot be carried by one of 399"):
        transport(made_up_teacher(source, points), source, cloud(points[:-1], turned(8)))


# Through points


def test_logits_are_the_mean_over_a_voxels_points():
    # Two points of one voxel and one of another meet in the second cloud; the fourth stays alone.
    before = points_in(np.array([[3, 5, 2], [3, 5, 2], [3, 6, 2], [9, 9, 4]]), SMALL)
    after = points_in(np.array([[4, 7, 1], [4, 7, 1], [4, 7, 1], [9, 9, 4]]), SMALL)
    logits = torch.tensor([[3.0, 0.1], [9.0, 0.4], [0.1, 0.7]])
    carried = carried_logits(logits, cloud(before), cloud(after))
    assert carried[0].tolist() == pytest.approx([5.0, 0.2])
    assert torch.equal(carried[1], logits[2])


def test_points_that_stay_keep_their_sites_and_sites_without_points_are_lost():
    points = random_points(seed=4)
    source = cloud(points)
    targets = made_up_teacher(source, points)
    carried = carry_through_points(targets, source, source)
    assert same_targets(carried, targets)
    layer = targets.layers["down1c"]
    empty = torch.tensor([[0, 7, 19]])
    assert not bool((layer.pillars == empty).all(dim=1).any())
    rows = torch.cat((layer.pillars, empty))
    order = torch.argsort(linear_index(rows, layer.shape))
    more = PillarFeatures(rows[order], torch.cat((layer.features, torch.ones(1, 3)))[order], layer.shape)
    with_hole = TeacherTargets(targets.voxels, targets.logits, targets.layers | {"down1c": more})
    assert same_targets(carry_through_points(with_hole, source, source), targets)


@given(view=st.builds(View, rotation=st.floats(0, 360), flip_y=st.booleans(), scale=st.floats(0.9, 1.1)))
def test_any_transform_takes_each_site_where_its_points_go_and_the_maximum_stays(view):
    points = random_points(seed=5)
    source, target = cloud(points), cloud(points, view)
    targets = made_up_teacher(source, points)
    carried = carry_through_points(targets, source, target)
    old, new = source.voxels[source.point_voxel], target.voxels[target.point_voxel]
    for name, stride in STRIDES.items():
        layer = targets.layers[name]
        known = dict(zip(map(tuple, layer.pillars[:, 1:].tolist()), layer.features, strict=True))
        expected: dict[tuple[int, ...], torch.Tensor] = {}
        for left, right in zip((old[:, 1:3] // stride).tolist(), (new[:, 1:3] // stride).tolist(), strict=True):
            cell, values = tuple(right), known[tuple(left)]
            expected[cell] = torch.maximum(expected.get(cell, values), values)
        found = carried.layers[name]
        assert found.shape == layer.shape
        assert [tuple(cell) for cell in found.pillars[:, 1:].tolist()] == sorted(expected)
        assert torch.equal(found.features, torch.stack([expected[cell] for cell in sorted(expected)]))


def test_a_batch_is_its_scans_one_after_another():
    clouds = [random_points(seed=seed) for seed in (6, 7)]
    view = View(rotation=33.0, flip_y=True)
    alone = []
    for points in clouds:
        source, target = cloud(points), cloud(points, view)
        alone.append(carry_through_points(made_up_teacher(source, points), source, target))
    source, target = (
        batch_scans([voxelise(apply_view(points, moved), SMALL) for points in clouds], SMALL.shape)
        for moved in (IDENTITY, view)
    )
    together = carry_through_points(made_up_teacher(source, np.concatenate(clouds)), source, target)
    assert same_targets(together, batch_targets(alone))
