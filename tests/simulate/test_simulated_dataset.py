"""Simulated datasets: determinism, classes, likeness to real scans, the layout on disk, and the command."""

import numpy as np
import pytest
from click.testing import CliRunner

from common.base.config import parse_settings
from common.base.errors import SettingsError
from common.scans.formats.semantic_kitti import scan_path
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_id import ScanId
from common.simulate.__main__ import main
from common.simulate.assemblies import CAR, MOVING
from common.simulate.dataset import SimulationSettings, sensor_pose, simulate_scan, street_of
from common.simulate.sensor import SensorSettings
from tests.shared.kitti import has_labels, list_scans, read_points, read_raw_labels

SMALL = SensorSettings(beams=16, columns=360)


@pytest.mark.parametrize("name", ["train", "²"])
def test_impossible_sequences_are_refused(name):
    with pytest.raises(SettingsError, match="sequences are numbers"):
        parse_settings(SimulationSettings, {"scans": {name: 3}}, "simulation")


def small_settings(**values: float) -> SimulationSettings:
    return SimulationSettings(scans={"00": 3, "08": 2, "11": 1}, spacing=6, sensor=SMALL, **values)


def test_scans_are_the_same_bytes_again_and_differ_by_seed_sequence_and_frame():
    scans = [ScanId("00", "000000"), ScanId("00", "000001"), ScanId("08", "000000")]
    first = [simulate_scan(small_settings(), scan) for scan in scans]
    # In another order, so that nothing may depend on what was simulated before.
    again = [simulate_scan(small_settings(), scan) for scan in reversed(scans)][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.points.tobytes() == other.points.tobytes()
        assert one.raw_labels.tobytes() == other.raw_labels.tobytes()
    first.append(simulate_scan(small_settings(seed=1), scans[0]))
    clouds = [scan.points.tobytes() for scan in first]
    assert len(set(clouds)) == len(clouds)


def test_all_classes_occur_and_instances_belong_to_one_thing(semantic_kitti):
    found: set[int] = set()
    for seed in range(4):
        settings = SimulationSettings(
            seed=seed, scans={f"{i:02d}": 8 for i in range(6)}, spacing=10, sensor=SensorSettings(beams=32, columns=720)
        )
        for number in range(6):
            scan = simulate_scan(settings, ScanId(f"{number:02d}", f"{number:06d}"))
            found |= set(semantic_kitti.to_training(scan.raw_labels).tolist())
            things = np.unique(scan.raw_labels[scan.raw_labels >> 16 > 0])
            assert len(np.unique(things >> 16)) == len(things)
            has_instance = np.isin(scan.raw_labels & 0xFFFF, [10, 11, 13, 15, 16, 18, 20, 30, 31, 32, *range(252, 260)])
            np.testing.assert_array_equal(has_instance, scan.raw_labels >> 16 > 0)
    assert found == set(range(20))


def rare_things(busy: float) -> int:
    """How many persons, riders, cycles and vehicles other than cars stand and move on four streets."""
    settings = small_settings(busy=busy)
    settings = settings.model_copy(update={"scans": {f"{number:02d}": 20 for number in range(4)}})
    found = 0
    for sequence in settings.scans:
        raw = np.unique(street_of(settings, sequence).shapes.raw)
        things = raw[raw >> 16 > 0] & 0xFFFF
        found += int((~np.isin(things, [CAR, MOVING[CAR]])).sum())
    return found


def test_a_busy_street_has_more_rare_things_and_a_quiet_one_none():
    assert rare_things(0) == 0
    usual = rare_things(1)
    assert 8 < usual < 80
    assert rare_things(6) > 3 * usual


def test_a_full_scan_is_like_a_real_one(semantic_kitti):
    settings = SimulationSettings()
    shares, voxels = np.zeros(20), []
    for sequence in ("00", "04", "08"):
        scan = simulate_scan(settings, ScanId(sequence, "000005"))
        assert 100_000 < len(scan.points) < 134_400
        voxels.append(len(voxelise(scan.points, PolarGrid.named("polarnet")).voxels))
        shares += np.bincount(semantic_kitti.to_training(scan.raw_labels), minlength=20) / len(scan.points) / 3
    assert 25_000 < np.mean(voxels) < 55_000
    common = [9, 11, 13, 15, 17]
    assert (shares[common] > 0.02).all()
    assert shares[common].sum() > 0.6


def test_the_command_writes_the_layout_once(tmp_path, semantic_kitti):
    out = tmp_path / "simulated"
    words = ["--out", str(out), "--set", "scans={00: 2, 08: 1, 11: 1}", "--set", "unlabelled=['11']"]
    words += ["--set", "sensor.beams=16", "--set", "sensor.columns=360"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "4 of them new" in done.output
    scans = list_scans(out, ["00", "08", "11"])
    assert [str(scan) for scan in scans] == ["00/000000", "00/000001", "08/000000", "11/000000"]
    for scan in scans:
        points = read_points(out, scan)
        assert len(points) > 3000
        assert has_labels(out, scan) == (scan.sequence != "11")
        if has_labels(out, scan):
            assert semantic_kitti.to_training(read_raw_labels(out, scan, len(points))).any()

    before = scan_path(out, scans[0]).read_bytes()
    scan_path(out, scans[0]).unlink()
    again = CliRunner().invoke(main, words)
    assert "1 of them new" in again.output
    assert scan_path(out, scans[0]).read_bytes() == before
    assert "0 of them new" in CliRunner().invoke(main, words).output

    other = CliRunner().invoke(main, [*words, "--set", "seed=5"])
    assert other.exit_code == 1
    assert "other settings" in other.output


def test_a_foreign_dataset_is_left_alone(sample_data):
    done = CliRunner().invoke(main, ["--out", str(sample_data), "--set", "scans={00: 1}"])
    assert done.exit_code == 1
    assert "not simulated here" in done.output
    assert isinstance(done.exception, SystemExit)


def test_two_processes_write_what_one_does(tmp_path):
    words = ["--set", "scans={00: 2, 01: 1}", "--set", "sensor.beams=16", "--set", "sensor.columns=360"]
    for jobs in ("1", "2"):
        done = CliRunner().invoke(main, ["--out", str(tmp_path / jobs), "--jobs", jobs, *words])
        assert done.exit_code == 0, done.output
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) == 3 * 2 + 2 * 2 + 1
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_poses_bring_the_road_of_every_scan_to_one_level(tmp_path):
    settings = small_settings(lean=2.0)
    words = ["scans={00: 3}", "lean=2.0", "spacing=6", "sensor.beams=16", "sensor.columns=360"]
    done = CliRunner().invoke(
        main, ["--out", str(tmp_path / "d"), *(word for pair in words for word in ("--set", pair))]
    )
    assert done.exit_code == 0, done.output
    folder = tmp_path / "d" / "sequences" / "00"
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-9)
    lines = dict(line.split(": ") for line in (folder / "calib.txt").read_text().splitlines())
    camera = np.vstack((np.array(lines["Tr"].split(), float).reshape(3, 4), (0, 0, 0, 1)))
    street = street_of(settings, "00")
    first = sensor_pose(settings, street, ScanId("00", "000000"))
    for frame in range(3):
        expected = np.linalg.inv(first) @ sensor_pose(settings, street, ScanId("00", f"{frame:06d}"))
        moved = np.linalg.inv(camera) @ np.vstack((poses[frame], (0, 0, 0, 1))) @ camera
        np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert np.linalg.norm(poses[2][:, 3]) == pytest.approx(12, abs=0.5)
    scan = simulate_scan(settings, ScanId("00", "000002"))
    road = (scan.raw_labels == 40) & (np.linalg.norm(scan.points[:, :3], axis=1) < 20)
    pose = first @ np.linalg.inv(camera) @ np.vstack((poses[2], (0, 0, 0, 1))) @ camera
    height = scan.points[road, :3] @ pose[2, :3] + pose[2, 3]
    assert np.abs(height).max() < 0.06
