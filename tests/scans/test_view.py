"""Views: what they do to a cloud, and that the same one comes back whenever it is drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.base.errors import SettingsError
from common.scans.scan_id import ScanId
from common.scans.view import (
    IDENTITY,
    AnchorSet,
    View,
    ViewPolicy,
    aligned_rotations,
    anchor_positions,
    anchor_view,
    apply_view,
    bin_degrees,
    draw_anchored_view,
    draw_view,
    from_anchors,
    rotated,
    rotated_by_bins,
)
from tests.shared.dataset_writer import street_scan

POINTS = street_scan(400, seed=3)[0]

scans = st.builds(ScanId, st.integers(0, 21).map("{:02d}".format), st.integers(0, 5000).map("{:06d}".format))
policies = st.builds(
    ViewPolicy,
    rotate=st.booleans(),
    flip=st.booleans(),
    scale=st.floats(0, 0.5),
    translate=st.floats(0, 2),
    seed=st.integers(0, 2**31),
)
angles = st.floats(-720, 720)


def norms(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, :3].astype(np.float64), axis=1)


def test_the_identity_changes_no_bit():
    odd = np.array([[-0.0, 1e-40, 3.4e38, 0.5], [1.0, -0.0, -0.0, np.float32(0.1)]], np.float32)
    for points in (POINTS, odd):
        assert apply_view(points, View()).tobytes() == points.tobytes()


@given(angle=angles)
def test_a_rotation_keeps_norms_heights_and_remission_and_turns_counter_clockwise(angle):
    moved = apply_view(POINTS, View(rotation=angle))
    assert moved.dtype == np.float32
    np.testing.assert_allclose(norms(moved), norms(POINTS), rtol=1e-6)
    np.testing.assert_array_equal(moved[:, 2:], POINTS[:, 2:])
    turned = np.arctan2(moved[:, 1], moved[:, 0]) - np.arctan2(POINTS[:, 1], POINTS[:, 0]) - np.deg2rad(angle)
    np.testing.assert_allclose(np.cos(turned), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.sin(turned), 0.0, atol=1e-5)


def test_a_quarter_turn_takes_x_to_y():
    x_axis = np.array([[2.0, 0.0, 1.0, 0.3]], np.float32)
    np.testing.assert_allclose(apply_view(x_axis, View(rotation=90)), [[0.0, 2.0, 1.0, 0.3]], atol=1e-6)


@given(flip_x=st.booleans(), flip_y=st.booleans())
def test_flips_negate_their_axis_exactly_and_undo_themselves(flip_x, flip_y):
    view = View(flip_x=flip_x, flip_y=flip_y)
    moved = apply_view(POINTS, view)
    signs = np.array([-1 if flip_x else 1, -1 if flip_y else 1, 1, 1], np.float32)
    np.testing.assert_array_equal(moved, POINTS * signs)
    np.testing.assert_array_equal(apply_view(moved, view), POINTS)


@given(scale=st.floats(0.5, 2.0))
def test_scale_acts_on_x_and_y_only(scale):
    moved = apply_view(POINTS, View(scale=scale))
    np.testing.assert_allclose(moved[:, :2], POINTS[:, :2] * scale, rtol=1e-6)
    np.testing.assert_array_equal(moved[:, 2:], POINTS[:, 2:])


def test_the_order_is_rotate_flip_scale_translate():
    view = View(rotation=90, flip_x=True, scale=2.0, translation=(10.0, 20.0, 30.0))
    point = np.array([[1.0, 3.0, 5.0, 0.5]], np.float32)
    # Rotated (-3, 1), flipped (3, 1), scaled (6, 2), translated (16, 22); z 5 + 30.
    np.testing.assert_allclose(apply_view(point, view), [[16.0, 22.0, 35.0, 0.5]], rtol=1e-6)


def test_applying_a_view_leaves_the_scan_alone():
    before = POINTS.copy()
    apply_view(POINTS, View(rotation=10, translation=(1, 1, 1)))
    np.testing.assert_array_equal(POINTS, before)


@given(policy=policies, scan=scans)
def test_view_0_is_the_identity(policy, scan):
    assert draw_view(policy, scan, 0) == IDENTITY


@given(policy=policies, wanted=st.lists(st.tuples(scans, st.integers(1, 50)), min_size=1, max_size=8), data=st.data())
def test_drawing_depends_on_seed_scan_and_index_and_not_on_the_order(policy, wanted, data):
    first = {item: draw_view(policy, *item) for item in wanted}
    for item in data.draw(st.permutations(wanted)):
        assert draw_view(policy, *item) == first[item]


@given(
    one=st.tuples(st.integers(0, 100), scans, st.integers(1, 50)),
    other=st.tuples(st.integers(0, 100), scans, st.integers(1, 50)),
)
def test_another_seed_scan_or_index_is_another_view(one, other):
    views = [draw_view(ViewPolicy(seed=seed), scan, index) for seed, scan, index in (one, other)]
    assert (views[0] == views[1]) == (one == other)


@given(policy=policies, scan=scans, index=st.integers(1, 50))
def test_a_view_stays_within_its_policy(policy, scan, index):
    view = draw_view(policy, scan, index)
    assert 0 <= view.rotation < 360
    assert policy.rotate or view.rotation == 0
    assert policy.flip or not (view.flip_x or view.flip_y)
    assert abs(view.scale - 1) <= policy.scale
    assert policy.translate > 0 or view.translation == (0, 0, 0)


def test_draws_are_spread_over_angles_flips_scales_and_shifts():
    policy = ViewPolicy(scale=0.05, translate=0.5)
    views = [draw_view(policy, ScanId("00", f"{frame:06d}"), 1) for frame in range(400)]
    counts, _ = np.histogram([view.rotation for view in views], bins=8, range=(0, 360))
    assert counts.min() > 25
    flips = [(view.flip_x, view.flip_y) for view in views]
    assert min(flips.count(pair) for pair in ((False, False), (False, True), (True, False), (True, True))) > 60
    scales = np.array([view.scale for view in views])
    assert scales.min() < 0.955
    assert scales.max() > 1.045
    assert np.std([view.translation for view in views], axis=0) == pytest.approx(0.5, rel=0.15)


@given(policy=policies, scan=scans, index=st.integers(0, 5))
def test_a_view_survives_json_bit_for_bit(policy, scan, index):
    view = draw_view(policy, scan, index)
    assert View.model_validate_json(view.model_dump_json()) == view


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": -1.0}, {"rotate": 3.0}, {"translation": (1.0, 2.0)}])
def test_a_view_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValidationError):
        View(**wrong)


# Anchors


views = st.builds(
    View,
    rotation=angles,
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    scale=st.floats(0.5, 2),
    translation=st.tuples(*[st.floats(-5, 5)] * 3),
)
anchor_sets = st.builds(
    AnchorSet, flips=st.sampled_from([["none"], ["none", "y"], ["none", "x", "y"]]), rotations=st.integers(1, 9)
)


@given(view=views, angle=angles)
def test_a_view_and_a_rotation_after_it_are_one_view(view, angle):
    apart = apply_view(apply_view(POINTS, view), View(rotation=angle))
    np.testing.assert_allclose(apply_view(POINTS, rotated(view, angle)), apart, atol=2e-4)


@given(view=views)
def test_no_bins_change_nothing(view):
    assert rotated_by_bins(view, 0, 360) == view


def test_flip_x_is_flip_y_and_half_a_turn():
    half_turned = apply_view(POINTS, rotated(View(flip_y=True), 180.0))
    np.testing.assert_allclose(apply_view(POINTS, View(flip_x=True)), half_turned, atol=1e-5)


def test_eight_anchors_stand_at_aligned_rotations_of_either_flip():
    assert aligned_rotations(360) == 23
    assert anchor_positions(4, 360) == [0, 7, 15, 22]
    assert anchor_positions(1, 360) == [0]
    anchors = AnchorSet()
    assert anchors.count == 8
    found = [anchor_view(anchors, index, 360) for index in range(8)]
    assert found[0] == IDENTITY
    assert [view.flip_y for view in found] == [False] * 4 + [True] * 4
    assert not any(view.flip_x or view.translation != (0, 0, 0) or view.scale != 1 for view in found)
    turns = [16 * position * bin_degrees(360) for position in (0, 7, 15, 22)]
    assert [view.rotation for view in found[:4]] == pytest.approx(turns)
    # A mirrored scan that is turned afterwards was turned the other way before.
    assert [-view.rotation % 360 for view in found[4:]] == pytest.approx(turns)


@given(anchors=anchor_sets, azimuth_bins=st.sampled_from([160, 360]), data=st.data())
def test_every_aligned_rotation_is_reached_from_the_anchors_on_both_sides(anchors, azimuth_bins, data):
    positions = aligned_rotations(azimuth_bins)
    flip, position = data.draw(st.integers(0, len(anchors.flips) - 1)), data.draw(st.integers(0, positions - 1))
    places = anchor_positions(anchors.rotations, azimuth_bins)
    seen = from_anchors(anchors, flip, position, azimuth_bins)
    ways = [(seen.anchor, seen.bins)] + ([] if seen.other is None else [(seen.other, seen.other_bins)])
    for index, bins in ways:
        assert index // anchors.rotations == flip
        assert 16 * places[index % anchors.rotations] + bins == 16 * position
    assert abs(seen.bins) == 16 * min(abs(place - position) for place in places)
    if position in places or anchors.rotations == 1:
        assert seen.other is None
    else:
        assert seen.bins * seen.other_bins < 0
        between = sorted(index % anchors.rotations for index, _ in ways)
        assert between[1] == between[0] + 1


def test_the_last_aligned_rotation_is_an_anchor_and_the_circle_ends_soon_after():
    for azimuth_bins in (40, 96, 160, 360):
        last = 16 * anchor_positions(2, azimuth_bins)[-1]
        assert last < azimuth_bins - 1 <= last + 16


def test_four_rotations_leave_at_most_64_bins():
    assert max(abs(from_anchors(AnchorSet(), 0, position, 360).bins) for position in range(23)) == 64


def test_draws_reach_every_flip_and_rotation_and_depend_on_nothing_but_seed_scan_and_epoch():
    scan = ScanId("00", "000003")
    drawn = [draw_anchored_view(AnchorSet(), 160, 5, scan, epoch) for epoch in range(300)]
    assert drawn == [draw_anchored_view(AnchorSet(), 160, 5, scan, epoch) for epoch in range(300)]
    assert drawn != [draw_anchored_view(AnchorSet(), 160, 6, scan, epoch) for epoch in range(300)]
    assert drawn != [draw_anchored_view(AnchorSet(), 160, 5, ScanId("00", "000004"), epoch) for epoch in range(300)]
    assert {*drawn} == {from_anchors(AnchorSet(), flip, place, 160) for flip in (0, 1) for place in range(10)}


def test_more_rotations_than_the_grid_has_are_refused():
    with pytest.raises(SettingsError, match="only 3 rotations by multiples of 16 bins; choose at most 3"):
        anchor_view(AnchorSet(rotations=6), 0, 40)


@pytest.mark.parametrize("flips", [[], ["y", "none"], ["none", "y", "y"], ["none", "z"]])
def test_flips_that_make_no_anchor_set_are_refused(flips):
    with pytest.raises(ValidationError):
        AnchorSet(flips=flips)
