"""The data pipeline reproduces the reference: indices and labels exactly, features within rounding."""

import hashlib

import numpy as np
import pytest

from common.scans.polar_grid import PolarGrid, VoxelisedScan, voxelise
from tests.golden.golden_files import GRIDS, golden_arrays, golden_json, label_map, scan_in_split, scans_folder
from tests.shared.kitti import read_points, read_raw_labels

FEATURE_TOLERANCE = 1e-5
SIZES = tuple(GRIDS)


class GoldenScan:
    """One scan of data.json, read and voxelised by the project, with what the reference says about it.

    Attributes:
        labels: uint8 [N] training labels.
        grid: the grid it is on.
        voxels: the voxelised scan.
        bins: int64 [N, 3] bins of each point.
        expected: entries of data.json.
        samples: arrays of data.npz by their last name.
    """

    def __init__(self, number: str, size: str) -> None:
        scan = scan_in_split(number)
        points = read_points(scans_folder(), scan)
        classes = label_map()
        self.labels: np.ndarray = classes.to_training(read_raw_labels(scans_folder(), scan, len(points)))
        self.grid: PolarGrid = data_grid(size)
        self.voxels: VoxelisedScan = voxelise(points, self.grid, self.labels)
        self.bins: np.ndarray = self.voxels.voxels[self.voxels.point_voxel].astype(np.int64)
        self.expected = golden_json("data")["scans"][number][size]
        start = f"{number}.{size}."
        self.samples = {k.removeprefix(start): v for k, v in golden_arrays("data").items() if k.startswith(start)}


def data_grid(size: str) -> PolarGrid:
    """The grid of one size over the volume that data.json names."""
    volume = golden_json("data")
    return PolarGrid(GRIDS[size], tuple(volume["min_volume_space"]), tuple(volume["max_volume_space"]))


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def golden_scans() -> dict[tuple[str, str], GoldenScan]:
    """Every scan of data.json on both grids."""
    return {(number, size): GoldenScan(number, size) for number in golden_json("data")["scans"] for size in SIZES}


@pytest.fixture(params=SIZES)
def of_size(request, golden_scans) -> list[GoldenScan]:
    """Every scan of data.json on one grid."""
    return [scan for (_, size), scan in golden_scans.items() if size == request.param]


def test_project_volume_is_the_golden_one():
    assert data_grid("full") == PolarGrid.named("polarnet", tuple(golden_json("data")["grid"]))


def test_there_is_something_to_compare(golden_scans):
    assert len(golden_scans) == 2 * len(golden_json("data")["scans"]) > 0
    assert all(len(scan.samples["rows"]) for scan in golden_scans.values())


def test_bins_of_every_point(of_size):
    for scan in of_size:
        assert len(scan.bins) == scan.expected["n_points"]
        assert sha256(scan.bins) == scan.expected["grid_ind_sha256_int64"]
        assert scan.bins.min(axis=0).tolist() == scan.expected["grid_ind_min"]
        assert scan.bins.max(axis=0).tolist() == scan.expected["grid_ind_max"]
        assert scan.bins.sum(axis=0).tolist() == scan.expected["grid_ind_sum"]
        np.testing.assert_array_equal(scan.bins[scan.samples["rows"]], scan.samples["grid_ind"])


def test_labels_of_every_point(of_size):
    for scan in of_size:
        assert scan.labels.dtype == np.uint8
        assert sha256(scan.labels) == scan.expected["point_label_sha256_uint8"]
        assert np.bincount(scan.labels, minlength=20).tolist() == scan.expected["point_label_hist"]
        np.testing.assert_array_equal(scan.labels[scan.samples["rows"]], scan.samples["point_label"].ravel())


def test_occupied_voxels_and_pillars(of_size):
    for scan in of_size:
        voxels = scan.voxels.voxels
        assert len(voxels) == scan.expected["n_voxels"]
        assert len(np.unique(voxels[:, :2], axis=0)) == scan.expected["n_pillars"]
        chosen = {tuple(voxel) for voxel in scan.samples["voxel"].tolist()}
        assert chosen <= {tuple(voxel) for voxel in voxels.tolist()}


def test_majority_label_of_every_voxel(of_size):
    for scan in of_size:
        dense = np.zeros(scan.grid.shape, np.uint8)
        dense[tuple(scan.voxels.voxels.T)] = scan.voxels.voxel_labels
        assert sha256(dense) == scan.expected["processed_label_sha256_uint8"]
        assert np.bincount(dense.ravel(), minlength=20).tolist() == scan.expected["processed_label_hist"]
        np.testing.assert_array_equal(dense[tuple(scan.samples["voxel"].T)], scan.samples["voxel_label"])


def test_point_features(of_size):
    for scan in of_size:
        features = scan.voxels.point_features
        sampled, expected = features[scan.samples["rows"]], scan.samples["fea"]
        np.testing.assert_allclose(sampled, expected, rtol=0, atol=FEATURE_TOLERANCE)
        magnitude = np.abs(features).max(axis=0)
        np.testing.assert_allclose(magnitude, scan.expected["return_fea_colabsmax"], rtol=0, atol=FEATURE_TOLERANCE)
        mean = features.astype(np.float64).mean(axis=0)
        expected_mean = np.array(scan.expected["return_fea_colsum"]) / len(features)
        np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=FEATURE_TOLERANCE)
