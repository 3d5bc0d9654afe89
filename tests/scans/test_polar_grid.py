"""Points to polar bins, voxels, features and majority labels."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.base.config import load_settings, parse_settings, write_yaml
from common.base.errors import SettingsError
from common.scans.dataset import GridSettings
from common.scans.polar_grid import PolarGrid, bin_indices, point_features, to_polar, unique_with_inverse, voxelise
from common.scans.scatter import majority_label
from tests.shared.dataset_writer import street_scan

GRID = PolarGrid.named("polarnet", (48, 36, 8))
FULL = PolarGrid.named("polarnet")

coordinates = st.one_of(
    st.floats(-120, 120, width=32),
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, -0.0, 3.0, -3.0, 50.0, -50.0, 1.5]),
)


@st.composite
def clouds(draw, least=1, most=60):
    """Points anywhere: at the origin, on the borders of the volume, far outside."""
    count = draw(st.integers(least, most))
    xyz = draw(hnp.arrays(np.float32, (count, 3), elements=coordinates))
    remission = draw(hnp.arrays(np.float32, (count, 1), elements=st.floats(0, 1, width=32)))
    return np.concatenate((xyz, remission), axis=1)


@st.composite
def labelled_clouds(draw):
    """A cloud that crowds few voxels, so that votes are contested, with a label for each point."""
    count = draw(st.integers(1, 60))
    xyz = draw(hnp.arrays(np.float32, (count, 3), elements=st.sampled_from([4.0, 4.1, -4.0, 7.5, 0.0])))
    labels = draw(hnp.arrays(np.uint8, count, elements=st.integers(0, 4)))
    return np.concatenate((xyz, np.zeros((count, 1), np.float32)), axis=1), labels


@given(clouds())
def test_bins_of_any_point_lie_on_the_grid(points):
    bins = bin_indices(to_polar(points[:, :3]), GRID)
    assert bins.dtype == np.int64
    assert (bins >= 0).all()
    assert (bins < GRID.shape).all()


@pytest.mark.parametrize("volume", ["polarnet", "cylinder3d"])
def test_clipped_points_land_in_the_outermost_bins(volume):
    grid = PolarGrid.named(volume)
    low, high = np.array(grid.minimum), np.array(grid.maximum)
    outside = np.stack((low - 100, low, high, high + 100)).astype(np.float32)
    bins = bin_indices(outside, grid)
    assert (bins[:2] == 0).all()
    assert (bins[2:] >= np.array(grid.shape) - 2).all()
    np.testing.assert_array_equal(bins[2], bins[3])


def test_point_at_the_sensor_falls_in_the_innermost_ring():
    voxels = voxelise(np.zeros((1, 4), np.float32), FULL).voxels
    assert voxels[0, 0] == 0


@given(clouds())
def test_offsets_of_inside_points_are_at_most_half_a_bin(points):
    polar = to_polar(points[:, :3])
    bins = bin_indices(polar, GRID)
    offsets = point_features(points, polar, bins, GRID)[:, :3]
    inside = (polar >= GRID.minimum) & (polar <= GRID.maximum)
    excess = np.abs(offsets) - GRID.interval / 2
    # One rounding of float32 at the magnitude of the coordinate.
    assert (excess[inside] <= 1e-5).all()


@given(clouds())
def test_features_hold_the_point_itself(points):
    features = voxelise(points, GRID).point_features
    assert features.dtype == np.float32
    assert features.shape == (len(points), 9)
    np.testing.assert_array_equal(features[:, 3:6], to_polar(points[:, :3]))
    np.testing.assert_array_equal(features[:, 6:8], points[:, :2])
    np.testing.assert_array_equal(features[:, 8], points[:, 3])


def test_polar_coordinates_of_known_points():
    xyz = np.array([[3, 4, 1], [0, 2, 0], [-1, 0, -2], [0, 0, 0]], np.float32)
    expected = [[5, np.arctan2(4, 3), 1], [2, np.pi / 2, 0], [1, np.pi, -2], [0, 0, 0]]
    np.testing.assert_allclose(to_polar(xyz), expected, rtol=1e-6)


@given(clouds())
def test_voxels_are_sorted_distinct_and_those_of_their_points(points):
    scan = voxelise(points, GRID)
    linear = np.ravel_multi_index(tuple(scan.voxels.T), GRID.shape)
    assert (np.diff(linear) > 0).all()
    np.testing.assert_array_equal(scan.voxels[scan.point_voxel], bin_indices(to_polar(points[:, :3]), GRID))
    assert set(scan.point_voxel) == set(range(len(scan.voxels)))
    assert not scan.voxel_labels.any()


@given(labelled_clouds())
def test_voxel_label_is_the_most_frequent_and_the_smallest_on_a_tie(cloud):
    points, labels = cloud
    scan = voxelise(points, GRID, labels, classes=5)
    for voxel in range(len(scan.voxels)):
        votes = Counter(labels[scan.point_voxel == voxel].tolist())
        winners = [label for label, count in votes.items() if count == max(votes.values())]
        assert scan.voxel_labels[voxel] == min(winners)


def test_tie_goes_to_the_smallest_label():
    labels = np.array([7, 3, 3, 7, 5, 19, 0], np.uint8)
    segment = np.array([0, 0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(majority_label(labels, segment, 3, 20), [3, 5, 0])


@given(labelled_clouds(), st.randoms(use_true_random=False))
def test_order_of_points_does_not_matter(cloud, random):
    points, labels = cloud
    order = np.array(random.sample(range(len(points)), len(points)))
    scan, shuffled = voxelise(points, GRID, labels, 5), voxelise(points[order], GRID, labels[order], 5)
    np.testing.assert_array_equal(shuffled.voxels, scan.voxels)
    np.testing.assert_array_equal(shuffled.voxel_labels, scan.voxel_labels)
    np.testing.assert_array_equal(shuffled.point_voxel, scan.point_voxel[order])
    np.testing.assert_array_equal(shuffled.point_features, scan.point_features[order])


@given(hnp.arrays(np.int64, st.integers(1, 80), elements=st.integers(-5, 40)))
def test_unique_with_inverse_equals_numpy(values):
    distinct, inverse = unique_with_inverse(values)
    expected, expected_inverse = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(distinct, expected)
    np.testing.assert_array_equal(inverse, expected_inverse)


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_street_on_the_full_grid(seed):
    points, _ = street_scan(3000, seed)
    scan = voxelise(points, FULL)
    counts = np.bincount(scan.point_voxel)
    assert counts.sum() == len(points)
    assert np.isfinite(scan.point_features).all()


def test_unknown_volume_is_refused_with_the_choices():
    with pytest.raises(SettingsError, match="polarnet, cylinder3d, nuscenes"):
        PolarGrid.named("waymo")


@pytest.mark.parametrize("shape", [(0, 8, 8), (-8, 8, 8), (8, 8, 1), (2**16, 2**16, 32)])
def test_a_grid_that_holds_no_scan_is_refused(shape):
    with pytest.raises(SettingsError, match="bins"):
        PolarGrid.named("polarnet", shape)


def test_a_volume_of_ones_own_is_a_setting(tmp_path):
    own = parse_settings(GridSettings, {"volume": {"rho": [3, 50], "z": [-3, 1.5]}, "shape": GRID.shape}, "mine")
    assert own.grid() == GRID
    write_yaml(own, tmp_path / "grid.yaml")
    assert load_settings(GridSettings, tmp_path / "grid.yaml") == own
    assert load_settings(GridSettings, None, ["volume={rho: [0, 20], z: [-1, 1]}"]).grid().maximum == (20, np.pi, 1)


@pytest.mark.parametrize(
    "volume", [{"rho": [50, 3], "z": [-3, 1]}, {"rho": [-1, 50], "z": [-3, 1]}, {"rho": [3, 50]}, {"rh": [3, 50]}]
)
def test_a_volume_that_holds_nothing_is_refused(volume):
    with pytest.raises(SettingsError, match="volume"):
        parse_settings(GridSettings, {"volume": volume}, "mine")
