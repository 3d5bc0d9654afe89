"""What is measured of scans, and what is made of it: each number held against what was put in."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from common.base.errors import DataError
from common.scans.dataset import Dataset, GridSettings, VolumeSettings, evenly
from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.polar_grid import PolarGrid, to_polar
from common.scans.scan_id import ScanId
from stage1_dump_teacher.data_checks.columns import (
    LABELS,
    column_called,
    contradicted,
    guess_width,
    name_columns,
    width_scores,
)
from stage1_dump_teacher.data_checks.looking import fitting_grid, grid_lines, look, reference_of, write_survey
from stage1_dump_teacher.data_checks.survey import (
    POINT_LIMIT,
    Measured,
    crowded,
    duplicates,
    ground_height,
    measure,
    outside,
)
from stage2_train_student.students.student import StudentSettings
from tests.shared.dataset_writer import SENSOR_HEIGHT, street_scan

GRID = GridSettings(shape=(48, 40, 16))
FULL = PolarGrid.named("polarnet")
GENERATOR = np.random.default_rng(0)


def test_the_limit_of_pillars_is_the_students():
    assert StudentSettings().max_points_per_pillar == POINT_LIMIT


def test_duplicates_are_exact_and_each_copy_counts():
    points = street_scan(2000)[0][:, :3]
    assert duplicates(points) == 0
    assert duplicates(np.concatenate((points, points[:7], points[:7]))) == 14
    assert duplicates(points[:, [1, 0, 2]]) == 0
    assert duplicates(np.zeros((5, 3), np.float32)) == 4


@pytest.mark.parametrize("height", [SENSOR_HEIGHT, 0.4, 3.0])
def test_the_ground_is_found_under_a_street(height):
    points = street_scan(4000)[0]
    points[:, 2] += SENSOR_HEIGHT - height
    assert ground_height(to_polar(points[:, :3])) == pytest.approx(-height, abs=0.08)


def test_the_ground_is_the_lowest_of_what_is_flat_and_none_without_points():
    generator = np.random.default_rng(0)
    rho = generator.uniform(3, 15, 3000)
    # A flat roof above, with more points in one place than the ground, and stray points below.
    z = np.concatenate((generator.normal(-1.7, 0.03, 1900), np.full(1000, -0.2), generator.uniform(-9, -2, 100)))
    assert ground_height(np.stack((rho, rho, z), axis=1)) == pytest.approx(-1.7, abs=0.05)
    assert ground_height(np.zeros((0, 3))) is None


def test_what_lies_outside_and_what_crowds_a_pillar():
    polar = np.array([[10, 0, 0], [2, 0, 0], [60, 0, 0], [10, 0, -3.5], [10, 0, 2]], np.float32)
    assert outside(polar, FULL).tolist() == [False, True, True, True, True]
    assert crowded(np.repeat(polar[:1], POINT_LIMIT + 5, axis=0), FULL) == 5


def test_measured_shares_are_those_of_the_scans(sample_data, semantic_kitti):
    points = np.fromfile(scan_path(sample_data, ScanId("00", "000000")), "<f4").reshape(-1, 4)
    points[:300, :3] = 0
    points.tofile(scan_path(sample_data, ScanId("00", "000000")))
    raw = np.fromfile(label_path(sample_data, ScanId("00", "000000")), "<u4")
    raw[:600] = 0
    raw.tofile(label_path(sample_data, ScanId("00", "000000")))
    dataset = Dataset.open(sample_data, semantic_kitti)
    found = measure(dataset, [ScanId("00", "000000")], GRID.grid()).summary(GRID, "one scan")
    assert (found.scans, found.points, found.origin, found.duplicates) == (1, 1500, 0.2, 0.0)
    assert found.unlabelled == pytest.approx((raw[300:] == 0).mean(), abs=1e-5)
    assert found.raw_ids[0] == pytest.approx((raw == 0).mean())
    assert sum(found.raw_ids.values()) == pytest.approx(1)
    assert found.degrees == 360
    rho = np.hypot(points[300:, 0], points[300:, 1])
    assert found.distance.percentiles[50] == pytest.approx(np.median(rho), abs=1e-3)
    assert sum(found.reflectance.shares) == pytest.approx(1, abs=1e-3)


def test_scans_are_chosen_evenly():
    scans = [ScanId("00", f"{number:06d}") for number in range(100)]
    assert evenly(scans, 4) == [scans[0], scans[25], scans[50], scans[75]]
    assert evenly(scans[:3], 4) == scans[:3]


def test_a_damaged_scan_is_named_and_the_others_are_measured(sample_data, semantic_kitti):
    path = scan_path(sample_data, ScanId("08", "000000"))
    path.write_bytes(path.read_bytes()[:-3])
    lines = dict(look(Dataset.open(sample_data, semantic_kitti), GRID, reference_of(None)))
    assert lines["reading"].status == "problem"
    assert "1 of 4 scans" in lines["reading"].finding
    assert str(path) in lines["reading"].finding
    assert lines["compared"].finding.startswith("3 of the scans")


def test_ids_that_the_map_does_not_list_come_with_their_share_and_line(sample_data, semantic_kitti):
    path = label_path(sample_data, ScanId("00", "000001"))
    raw = np.fromfile(path, "<u4")
    raw[:450] = 300
    raw.tofile(path)
    lines = dict(look(Dataset.open(sample_data, semantic_kitti), GRID, reference_of(None)))
    assert lines["label ids"].status == "problem"
    assert "300 (10.00% of the points)" in lines["label ids"].finding
    assert "`300: 0`" in lines["label ids"].next_step


def test_a_common_class_that_is_never_seen_is_noted(sample_data, semantic_kitti):
    for path in sample_data.glob("sequences/*/labels/*.label"):
        raw = np.fromfile(path, "<u4")
        raw[(raw & 0xFFFF) == 50] = 70
        raw.tofile(path)
    lines = dict(look(Dataset.open(sample_data, semantic_kitti), GRID, reference_of(None)))
    assert lines["classes"].status == "note"
    # Rare ones may be missing among a few scans: listed, but nothing to worry about.
    assert "building" in lines["classes"].next_step
    assert "motorcyclist" in lines["classes"].finding
    assert "motorcyclist" not in lines["classes"].next_step


def test_what_was_measured_serves_as_reference_and_is_drawn(sample_data, semantic_kitti, tmp_path):
    dataset, kept, picture = Dataset.open(sample_data, semantic_kitti), tmp_path / "kept.yaml", tmp_path / "scans.png"
    before = dict(look(dataset, GRID, reference_of(None), picture, kept))
    assert before["points"].status == "note"
    assert matplotlib.image.imread(picture).shape[:2] == (520, 1040)
    # What should be common by SemanticKITTI's shares is still not there.
    after = look(dataset, GRID, reference_of(None, kept))
    assert {name for name, line in after if line.status != "ok"} == {"classes"}
    # Beside a checkpoint it is found by itself.
    write_survey(reference_of(None, kept), tmp_path / "run" / "trained_on.yaml")
    assert reference_of(tmp_path / "run" / "teacher.pt") == reference_of(None, kept)
    assert reference_of(tmp_path / "teacher.pt").source.startswith("SemanticKITTI")


def test_scans_of_nothing_are_refused():
    with pytest.raises(DataError, match="not at the origin"):
        Measured(scans=1, points=3, origin=3).summary(GRID, "scans")


def test_a_grid_that_fits_holds_the_points_and_can_be_pasted():
    points = street_scan(5000)[0]
    grid, share = fitting_grid(points, -SENSOR_HEIGHT)
    assert isinstance(grid.volume, VolumeSettings)
    assert share > 0.94
    assert grid.volume.z[0] <= -SENSOR_HEIGHT - 1
    assert grid.shape[0] % 16 == 0
    assert grid_lines(GridSettings(volume=VolumeSettings(rho=(3, 50), z=(-3, 1.5))))[1] == (
        "  volume: {rho: [3, 50], z: [-3, 1.5]}"
    )


@pytest.mark.parametrize("columns", [3, 4, 5, 6])
@pytest.mark.parametrize("shuffled", [False, True])
def test_columns_are_counted_by_what_they_hold(columns, shuffled):
    generator = np.random.default_rng(columns)
    points, count = street_scan(6000, columns)[0], 6000
    more = (generator.integers(0, 64, count), generator.uniform(0, 0.1, count))
    rows = np.column_stack((points, *more))[:, :columns].astype(np.float32)
    if not shuffled:
        rows = rows[np.argsort(np.arctan2(rows[:, 1], rows[:, 0]))]
    assert guess_width(width_scores(rows.ravel())) == columns
    assert contradicted(rows.ravel(), columns) is None
    assert contradicted(rows.ravel(), columns + 1) == columns
    assert name_columns(rows) == ["x", "y", "z", "intensity", "ring", "column_6"][:columns]


def test_what_cannot_be_counted_is_not_guessed():
    assert guess_width(width_scores(np.zeros(0, np.float32))) is None
    assert guess_width(width_scores(np.full(120, 3.5, np.float32))) is None
    assert column_called(["x", "y", "z", "Label"], LABELS) == "Label"
    assert column_called(["x", "y", "z"], LABELS) is None


def test_a_file_of_other_columns_is_a_problem_before_anything_is_measured(sample_data, semantic_kitti):
    for path in Path(sample_data).glob("sequences/*/velodyne/*.bin"):
        points = np.fromfile(path, "<f4").reshape(-1, 4)
        np.column_stack((points, np.arange(len(points)) % 64)).astype("<f4").tofile(path)
    lines = list(look(Dataset.open(sample_data, semantic_kitti), GRID, reference_of(None)))
    assert [name for name, _ in lines] == ["columns"]
    assert "5 numbers a point" in lines[0][1].finding
    assert "new-dataset" in lines[0][1].next_step
