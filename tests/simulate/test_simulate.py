"""The simulated sensor: exact geometry and labels, and what its settings do."""

from collections.abc import Sequence

import numpy as np
import pytest

from common.base.config import parse_settings
from common.base.errors import SettingsError
from common.simulate.raycast import GROUND, Beams, cast, incidence
from common.simulate.sensor import OUTLIER, Scan, SensorSettings, beam_degrees, measure
from common.simulate.shapes import BOX, CYLINDER, ELLIPSOID, Part, Shapes, placed, shapes_of
from common.simulate.street import Patch, Street, at_time, ground_labels

HEIGHT = 1.73
EXACT = {"range_noise": 0, "drop_out": 0, "outliers": 0, "weakest_return": 0, "own_vehicle": False}
SMALL = {"beams": 16, "columns": 360}
LEVEL = np.eye(3)


def street_of_parts(*parts: Part, patches: tuple[Patch, ...] = ()) -> Street:
    return Street(shapes_of(parts), 0, list(patches), np.zeros((0, 2)))


def look(street: Street, seed: int = 0, **settings: object) -> Scan:
    """One turn at the origin, level, by default without noise."""
    sensor = SensorSettings(**(SMALL | EXACT | settings))
    return measure(sensor, street, street.shapes, pose_at((0, 0, sensor.height)), np.random.default_rng(seed))


def pose_at(origin: Sequence[float], rotation: np.ndarray = LEVEL) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, origin
    return pose


def first_hits(shapes: Shapes, beams: Beams, origin: np.ndarray, rotation: np.ndarray = LEVEL) -> np.ndarray:
    ranges, hit = cast(beams, pose_at(origin, rotation), shapes, 80.0, np.random.default_rng(0))
    return np.where(hit >= 0, ranges, np.inf)


def test_beams_that_look_down_meet_flat_ground_at_the_right_range():
    scan = look(street_of_parts())
    falling = np.radians(beam_degrees(SensorSettings(**SMALL)))
    expected = HEIGHT / np.sin(-falling[scan.beam])
    np.testing.assert_allclose(np.linalg.norm(scan.points[:, :3], axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(scan.points[:, 2], -HEIGHT, atol=1e-4)
    # Every beam below the horizon returns on every azimuth, unless the ground is beyond the maximum range.
    seen = (falling < 0) & (HEIGHT / np.sin(-np.minimum(falling, -1e-9)) < 80)
    assert np.bincount(scan.beam, minlength=16).tolist() == (360 * seen).tolist()


def test_a_box_at_a_known_place_is_hit_by_the_expected_rays():
    # Its near face is the plane x = 10, 4 m wide, from the ground to above every beam.
    wall = Part(BOX, (10.5, 0, 5), (0.5, 2, 5), 50 | 3 << 16, 0.5)
    scan = look(street_of_parts(wall))
    wide = np.abs(np.arctan2(scan.points[:, 1], scan.points[:, 0])) < np.arctan2(2, 10)
    on_wall = (scan.raw_labels & 0xFFFF) == 50
    steep = np.tan(np.radians(beam_degrees(SensorSettings(**SMALL))))[scan.beam]
    azimuth = np.arctan2(scan.points[:, 1], scan.points[:, 0])
    above_ground = HEIGHT + 10 / np.cos(azimuth) * steep > 0
    np.testing.assert_array_equal(on_wall, wide & above_ground)
    assert on_wall.sum() > 100
    np.testing.assert_allclose(scan.points[on_wall, 0], 10, atol=1e-4)
    assert set(scan.raw_labels[on_wall]) == {50 | 3 << 16}
    assert set(scan.raw_labels[~on_wall]) == {40}


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
def test_hits_lie_on_the_surface_and_culling_loses_none(kind):
    """Every solid by itself, from a leaning sensor, against all rays tried one formula at a time in float64."""
    generator = np.random.default_rng(kind)
    beams = Beams(np.radians(np.linspace(20, -60, 33)), (np.arange(128) + 0.5) * 2 * np.pi / 128)
    tilt = 0.04
    lean = np.array([[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]])
    origin = np.array([100.0, -50.0, 1.7])
    beam, column = np.divmod(np.arange(33 * 128), 128)
    directions = beams.directions(beam, column) @ lean.T
    hits = 0
    for _ in range(40):
        half = generator.uniform(0.1, 3, 3)
        offset = generator.uniform(-9, 9, 2)
        if np.linalg.norm(offset) < 0.5 + np.linalg.norm(half[:2]):
            continue
        centre = (*(origin[:2] + offset), float(generator.uniform(2, 5) + half[2]))
        part = Part(kind, centre, tuple(half), 50, 0.5, yaw=float(generator.uniform(-4, 4)))
        found = first_hits(shapes_of([part]), beams, origin, lean).ravel()
        expected = reference_range(part, origin, directions)
        edge = np.isfinite(found) != np.isfinite(expected)
        assert edge.sum() <= 2  # rays that graze an edge may differ by rounding
        np.testing.assert_allclose(found[~edge], expected[~edge], atol=2e-3)
        hits += int(np.isfinite(found).sum())
    assert hits > 500


def test_the_first_of_many_hits_is_found_though_hidden_solids_are_passed_over():
    generator = np.random.default_rng(3)
    parts = []
    for _ in range(150):
        place = generator.uniform(-30, 30, 2)
        half = generator.uniform(0.05, 1.5, 3)
        if np.linalg.norm(place) > 3 + np.linalg.norm(half[:2]):
            kind = int(generator.integers(3))
            parts.append(Part(kind, (*place, 1.5), tuple(half), 50, 0.5, yaw=float(generator.uniform(-4, 4))))
    beams = Beams(np.radians(np.linspace(10, -20, 24)), (np.arange(180) + 0.5) * 2 * np.pi / 180)
    origin = np.array([0, 0, HEIGHT])
    directions = beams.directions(*np.divmod(np.arange(24 * 180), 180))
    ground = np.where(directions[:, 2] < 0, HEIGHT / np.maximum(-directions[:, 2], 1e-9), np.inf)
    expected = np.min([reference_range(part, origin, directions) for part in parts], axis=0)
    expected[expected >= ground] = np.inf
    found = first_hits(shapes_of(parts), beams, origin).ravel()
    different = ~np.isclose(found, expected, atol=2e-3)
    assert np.isfinite(expected).sum() > 1000
    assert different.sum() <= 4  # rays that graze an edge


def reference_range(part: Part, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Range at which each ray enters a solid, all rays at once in float64."""
    cosine, sine = np.cos(part.yaw), np.sin(part.yaw)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    half = np.array(part.half)
    start = turn @ (origin - np.array(part.centre)) / half
    step = directions @ turn.T / half
    near, far = np.full(len(step), -np.inf), np.full(len(step), np.inf)
    round_axes = {BOX: [], CYLINDER: [0, 1], ELLIPSOID: [0, 1, 2]}[part.kind]
    for axis in set(range(3)) - set(round_axes):
        ends = np.stack(((-1 - start[axis]) / step[:, axis], (1 - start[axis]) / step[:, axis]))
        near, far = np.maximum(near, ends.min(axis=0)), np.minimum(far, ends.max(axis=0))
    if round_axes:
        a = (step[:, round_axes] ** 2).sum(axis=1)
        b = step[:, round_axes] @ start[round_axes]
        discriminant = b * b - a * ((start[round_axes] ** 2).sum() - 1)
        root = np.sqrt(np.where(discriminant >= 0, discriminant, np.nan))
        near, far = np.fmax(near, (-b - root) / a), np.fmin(far, (-b + root) / a)
        far = np.where(discriminant >= 0, far, -np.inf)
    return np.where((near <= far) & (near > 0) & (near < 80), near, np.inf)


def test_the_nearer_solid_hides_the_farther_one():
    near = Part(BOX, (6, 0, 1), (0.2, 1, 1), 10, 0.3)
    far = Part(BOX, (12, 0, 1), (0.2, 1, 1), 50, 0.3)
    for parts in ((near, far), (far, near)):
        labels = look(street_of_parts(*parts)).raw_labels
        assert (labels == 10).any()
        # The far box is no higher above the sensor's eye and no wider than the near one's shadow.
        assert not (labels == 50).any()


def test_leaves_let_some_rays_through_and_hits_lie_inside():
    crown = Part(ELLIPSOID, (8, 0, 1.5), (2, 2, 1.2), 70, 0.35, depth=3.0)
    wall = Part(BOX, (15, 0, 5), (0.5, 9, 5), 50, 0.4)
    scan = look(street_of_parts(crown, wall), columns=720)
    leaves = scan.points[scan.raw_labels == 70, :3] - np.array([8, 0, 1.5 - HEIGHT])
    inside = ((leaves / np.array([2, 2, 1.2])) ** 2).sum(axis=1)
    assert inside.max() <= 1 + 1e-4
    assert inside.min() < 0.5
    behind = (scan.raw_labels == 50) & (np.abs(np.arctan2(scan.points[:, 1], scan.points[:, 0])) < 0.1)
    assert behind.sum() > 10


def test_cosine_of_incidence_comes_from_the_surface():
    shapes = shapes_of(
        [
            Part(BOX, (5, 0, 0), (1, 1, 1), 50, 0.5, yaw=np.pi / 4),
            Part(CYLINDER, (5, 0, 0), (1, 1, 1), 80, 0.5),
            Part(ELLIPSOID, (5, 0, 0), (1, 1, 1), 10, 0.5),
        ]
    )
    ahead, down = np.array([[1.0, 0, 0]]), np.array([[0.0, 0, -1]])
    corner = np.array([[5 - np.sqrt(2) + 0.1, 0.1, 0]])
    assert incidence(corner, ahead, np.array([0]), shapes)[0] == pytest.approx(np.sqrt(0.5))
    slant = np.array([[5 - np.sqrt(0.5), np.sqrt(0.5), 0]])
    for row in (1, 2):
        assert incidence(slant, ahead, np.array([row]), shapes)[0] == pytest.approx(np.sqrt(0.5))
    assert incidence(np.array([[5.2, 0, 1.0]]), down, np.array([1]), shapes)[0] == pytest.approx(1)
    assert incidence(np.array([[3.0, 0, 0]]), down, np.array([GROUND]), shapes)[0] == pytest.approx(1)


def test_patches_and_kerbs_label_the_ground():
    patches = [Patch(-50, 50, 3, 50, 48), Patch(-50, 50, 6, 50, 72)]
    places = np.array([[0, 0], [0, 4.0], [20, 8.0], [60, 8.0]])
    assert ground_labels(patches, places).tolist() == [40, 48, 72, 40]
    assert ground_labels(patches, places[:0]).tolist() == []

    block = Part(BOX, (0, 26.5, -0.1), (50, 23.5, 0.2), 48, 0.36)
    street = Street(shapes_of([block]), 1, patches, np.zeros((0, 2)))
    scan = look(street, beams=64, columns=720)
    y, z = scan.points[:, 1], scan.points[:, 2] + HEIGHT
    kerb = (z > 0.001) & (z < 0.09)
    assert kerb.sum() > 100
    np.testing.assert_allclose(y[kerb], 3, atol=1e-3)
    assert set(scan.raw_labels[kerb]) == {48}
    top = np.abs(z - 0.1) < 1e-4
    np.testing.assert_array_equal(scan.raw_labels[top & (y > 6.01)], 72)
    np.testing.assert_array_equal(scan.raw_labels[top & (y > 3.01) & (y < 5.99)], 48)


def test_assemblies_keep_label_and_instance_where_they_are_put():
    part = Part(BOX, (1, 0, 0.5), (0.5, 0.2, 0.5), 252, 0.3)
    (there,) = placed([part], (10, 5, 0.1), np.pi / 2, instance=7, speed=8)
    np.testing.assert_allclose(there.centre, (10, 6, 0.6))
    np.testing.assert_allclose(there.velocity, (0, 8), atol=1e-12)
    assert there.raw == 252 | 7 << 16


def test_moving_things_move_and_those_at_the_sensor_are_left_out():
    slow = Part(BOX, (20, 0, 1), (2, 1, 1), 252 | 1 << 16, 0.3, velocity=(-4, 0))
    pole = Part(CYLINDER, (1, 1, 1), (0.1, 0.1, 1), 80, 0.3)
    street = street_of_parts(slow, pole)
    here = np.zeros(2)
    assert at_time(street, 2, here).centre[0, 0] == pytest.approx(12)
    assert at_time(street, 5, here).raw.tolist() == [80]


def test_without_noise_range_labels_and_remission_are_repeatable_and_noise_is_what_was_asked_for():
    exact = look(street_of_parts(), columns=2000)
    assert look(street_of_parts(), seed=1, columns=2000).points[:, :3].tobytes() == exact.points[:, :3].tobytes()
    noisy = look(street_of_parts(), columns=2000, range_noise=0.05)
    error = np.linalg.norm(noisy.points[:, :3], axis=1) - np.linalg.norm(exact.points[:, :3], axis=1)
    assert error.std() == pytest.approx(0.05, rel=0.05)
    assert abs(error.mean()) < 0.003


def test_drop_out_outliers_range_limits_and_weak_returns():
    whole = look(street_of_parts(), columns=2000)
    kept = look(street_of_parts(), columns=2000, drop_out=0.25)
    assert len(kept.points) / len(whole.points) == pytest.approx(0.75, abs=0.02)
    assert len(look(street_of_parts(), drop_out=1).points) == 0
    stray = look(street_of_parts(), columns=2000, outliers=0.1).raw_labels
    assert (stray == OUTLIER).mean() == pytest.approx(0.1, abs=0.02)
    touching = Part(BOX, (1.5, 0, 1), (0.49, 1, 1), 10, 0.3)
    close = look(street_of_parts(touching), columns=2000, outliers=1, range_noise=0.05)
    assert set(close.raw_labels) == {OUTLIER}
    ranges = np.linalg.norm(look(street_of_parts(), minimum_range=6, maximum_range=20).points[:, :3], axis=1)
    assert 6 <= ranges.min() < 7
    assert 12 < ranges.max() <= 20
    weak = np.linalg.norm(look(street_of_parts(), weakest_return=0.2).points[:, :3], axis=1)
    assert weak.max() < np.linalg.norm(whole.points[:, :3], axis=1).max()


def test_own_roof_hides_the_lowest_beams_ahead_and_behind_only():
    scan = look(street_of_parts(), beams=64, columns=720, own_vehicle=True)
    azimuth = np.abs(np.degrees(np.arctan2(scan.points[:, 1], scan.points[:, 0])))
    lowest = scan.beam == 63
    assert not (lowest & ((azimuth < 15) | (azimuth > 165))).any()
    assert (lowest & (np.abs(azimuth - 90) < 30)).sum() == pytest.approx(240, abs=2)


def test_remission_is_a_hundredth_and_falls_with_incidence():
    plain = look(street_of_parts(), remission_noise=0, incidence=0)
    assert set(plain.points[:, 3]) == {np.float32(0.29)}
    slanted = look(street_of_parts(), remission_noise=0, incidence=1)
    steep = slanted.points[slanted.beam == 15, 3].mean()
    flat = slanted.points[slanted.beam == 10, 3].mean()
    assert steep == pytest.approx(0.29 * np.sin(np.radians(24.8)), abs=0.006)
    assert flat < steep


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"beams": 33}, "shared out evenly"),
        ({"field_of_view": [(-8, 2)], "beams": 16}, "must fall"),
        ({"minimum_range": 90}, "below maximum_range"),
        ({"beam": 16}, "did you mean 'beams'"),
    ],
)
def test_impossible_sensors_are_refused(values, words):
    with pytest.raises(SettingsError, match=words):
        parse_settings(SensorSettings, values, "sensor")
