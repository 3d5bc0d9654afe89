"""The command `consistency`: its measures by hand, and each policy with the reduced teacher."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.scans.view import View
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from stage1_dump_teacher.consistency.agreement import (
    Agreement,
    LayerAgreement,
    PointAgreement,
    agreement,
    distance_of_points,
    mean,
)
from stage1_dump_teacher.consistency.measure import augmentation_named
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, fail, settings_words
from tests.shared.small_stores import stage_one

VOXELS = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]])


def targets(logits: list[list[float]], pillars: list[list[int]], features: list[list[float]]) -> TeacherTargets:
    layer = PillarFeatures(torch.tensor(pillars), torch.tensor(features), (4, 4))
    return TeacherTargets(VOXELS, torch.tensor(logits), {"up0e": layer})


def cloud(
    point_voxel: list[int],
    voxels: torch.Tensor = VOXELS,
    shape: tuple[int, int, int] = (4, 4, 4),
    labels: list[int] | None = None,
) -> ScanBatch:
    """Points of some voxels; of their features the measures know nothing."""
    pillars, voxel_pillar = torch.unique(voxels[:, :3], dim=0, return_inverse=True)
    voxel_labels = torch.tensor(labels or [0] * len(voxels))
    features = torch.zeros(len(point_voxel), 9)
    counts = torch.bincount(voxel_pillar[torch.tensor(point_voxel)])
    known = (shape, 1, bool(voxel_labels.any()), int(counts.max()))
    return ScanBatch(features, torch.tensor(point_voxel), voxels, voxel_labels, pillars, voxel_pillar, *known)


def run(data: Path, teacher: Path, *options: object) -> str:
    words = ["--data", data, "--teacher", teacher, "--config", CONFIGS / "teachers/cylinder3d.yaml", "--device", "cpu"]
    reduced = settings_words(f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}")
    result = stage_one("consistency", *words, *reduced, *options)
    assert result.exit_code == 0, result.output
    return result.output


def rows(output: str) -> list[list[list[str]]]:
    """Cells of every table below its head."""
    tables = [part.strip().splitlines() for part in output.split("\n\n") if part.strip().startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]] for table in tables]


# Measures


def test_the_measures_by_hand():
    live = targets(
        [[9.0, 2.0, 1.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0]],
        [[0, 0, 0], [0, 0, 1], [0, 2, 2]],
        [[1.0, 2.0], [3.0, 6.0], [2.0, 0.0]],
    )
    other = targets(
        [[9.0, 2.0, 1.0], [0.0, 2.0, 1.0], [0.0, 3.0, 1.0]],
        [[0, 0, 0], [0, 0, 1], [0, 3, 3]],
        [[1.0, 2.0], [3.0, 2.0], [0.0, 1.0]],
    )
    found = agreement(other, live, cloud([0, 0, 1, 2, 2]))
    # Class 0 never counts; only the point in the second voxel disagrees.
    assert found.argmax == pytest.approx(4 / 5)
    theirs, ours = ([math.exp(value / 10) for value in row] for row in ([0.0, 1.0, 2.0], [0.0, 2.0, 1.0]))
    share = [value / sum(theirs) for value in theirs]
    divergence = sum(p * math.log(p / (q / sum(ours))) for p, q in zip(share, ours, strict=True))
    assert found.divergence == pytest.approx(divergence / 5, rel=1e-5)
    layer = found.layers["up0e"]
    # Shared pillars, centred: live (-1, -2), (1, 2); ours (-1, 0), (1, 0).
    assert layer.cosine == pytest.approx(2 / math.sqrt(10 * 2))
    assert layer.relative_l2 == pytest.approx(math.sqrt(16 + 4 + 1) / math.sqrt(1 + 4 + 9 + 36 + 4))
    assert layer.reached == pytest.approx(2 / 3)


def test_equal_targets_agree_fully():
    one = targets([[0.0, 1.0]] * 3, [[0, 0, 0], [0, 1, 1]], [[1.0], [2.0]])
    found = agreement(one, one, cloud([0, 1, 2]))
    assert (found.argmax, found.divergence) == (1.0, 0.0)
    assert found.layers == {"up0e": LayerAgreement(pytest.approx(1.0), 0.0, 1.0)}
    near = found.places["0 to 8 bins"]
    assert (near.argmax, near.divergence, near.divergence_share) == (1.0, 0.0, 0.0)
    assert math.isnan(near.right)
    assert math.isnan(near.live_right)


def test_agreement_by_distance_from_the_border_by_hand():
    # Azimuth bins of 48; 46 is the last but one, next to the border from the other side, and 47 holds phi = pi itself.
    azimuth = [0, 7, 8, 20, 23, 39, 46, 47]
    voxels = torch.tensor([[0, 0, place, 0] for place in azimuth])
    live_logits, carried_logits = torch.zeros(8, 3), torch.zeros(8, 3)
    live_logits[:, 1], carried_logits[:, 1] = 5.0, 5.0
    carried_logits[[0, 3], 2] = 9.0
    one, other = (TeacherTargets(voxels, logits, {}) for logits in (carried_logits, live_logits))
    # Whom the labels support: class 2 in the first voxel, class 1 in the second, unlabelled in the third, ...
    found = agreement(one, other, cloud(list(range(8)), voxels, (4, 48, 4), [2, 1, 0, 1, 0, 2, 0, 0]))
    assert [found.places[name].argmax for name in ("0 to 8 bins", "8 to 16 bins", "16 to 32 bins")] == [
        pytest.approx(value) for value in (4 / 5, 1.0, 1 / 2)
    ]
    assert math.isnan(found.places["from 32 bins on"].argmax)
    shares = [found.places[name].divergence_share for name in found.places]
    assert shares == pytest.approx([0.5, 0.0, 0.5, 0.0])
    assert found.places["16 to 32 bins"].divergence == pytest.approx(2 * found.divergence)
    right = [(found.places[name].right, found.places[name].live_right) for name in ("0 to 8 bins", "16 to 32 bins")]
    assert right == [pytest.approx((2 / 3, 1 / 3)), (0.0, 1.0)]
    assert math.isnan(found.places["8 to 16 bins"].right)


def test_the_mean_is_over_every_number():
    one, other = (
        Agreement(
            x, 2 * x, {"up0e": LayerAgreement(x, 3 * x, x / 2)}, {"near": PointAgreement(x, 4 * x, x / 4, y, y / 2)}
        )
        for x, y in ((0.2, 0.4), (0.6, math.nan))
    )
    middle = mean([one, other])
    assert (middle.argmax, middle.divergence) == pytest.approx((0.4, 0.8))
    near = middle.places["near"]
    assert (near.argmax, near.divergence, near.divergence_share) == pytest.approx((0.4, 1.6, 0.1))
    assert (near.right, near.live_right) == pytest.approx((0.4, 0.2))
    layer = middle.layers["up0e"]
    assert (layer.cosine, layer.relative_l2, layer.reached) == pytest.approx((0.4, 1.2, 0.2))


def test_augmentations_by_name():
    assert augmentation_named("rotate:-90", 360).view == View(rotation=-90)
    assert augmentation_named("flip:x", 360).view == View(flip_x=True)
    assert augmentation_named("scale:1.05", 360).view == View(scale=1.05)
    aligned = augmentation_named("bins:16", 360)
    assert aligned.bins == 16
    assert aligned.view.rotation == pytest.approx(16 * 360 / 359)
    assert augmentation_named("bins:8.5", 360).bins is None
    assert augmentation_named("bins:4", 360).bins is None


@pytest.mark.parametrize(
    "name", ["", "turn:3", "rotate:x", "flip:3", "flip:z", "scale:0", "scale:-1", "bins:", "bins:8 "]
)
def test_what_is_no_augmentation_is_refused(name):
    with pytest.raises(SettingsError, match="is not an augmentation; write rotate:DEGREES"):
        augmentation_named(name, 360)


# The command


def test_transport_of_nothing_is_exact_and_the_picture_is_drawn(streets, reduced_teacher, tmp_path):
    picture = tmp_path / "transport.png"
    names = ("bins:0", "bins:8", "rotate:7", "flip:y")
    chosen = [word for name in names for word in ("--augmentation", name)]
    output = run(streets, reduced_teacher, "--scans", 2, *chosen, "--picture", picture)
    logits, _, features = rows(output)
    expected = [("bins:0", "shift"), ("bins:0", "points"), ("bins:8", "shift"), ("bins:8", "points")]
    assert [tuple(row[:2]) for row in logits] == [*expected, ("rotate:7", "points"), ("flip:y", "points")]
    assert logits[0][2:] == ["1.000", "0.0e+00", *["1.000"] * 5]
    assert features[0][2:] == ["0.000 (1.000)"] * 5
    assert logits[1][2:4] == ["1.000", "0.0e+00"]
    for row in logits[2:]:
        assert 0 < float(row[2]) < 1
        assert float(row[3]) > 0
    shift, points = ([float(cell.split()[0]) for cell in row[2:]] for row in features[2:4])
    assert sum(shift) < sum(points), "a shift leaves no holes"
    pixels = imread(picture)
    assert pixels.shape[1] > 1000
    assert len(set(map(tuple, pixels.reshape(-1, pixels.shape[2]).tolist()))) > 50


def test_anchors_agree_fully_where_nothing_is_left_to_rotate(streets, reduced_teacher):
    words = ("--policy", "anchors", *settings_words("views.anchors.rotations=2"))
    output = run(streets, reduced_teacher, *words)
    logits, places, features = rows(output)
    names = [(row[0], row[1]) for row in logits]
    assert names[-1] == ("all", "")
    assert names[:-1] == [(f"{bins} bins from an anchor", f"flip {flip}") for bins in (0, 16) for flip in ("none", "y")]
    for row in logits[:2]:
        assert row[2:] == ["1.000", "0.0e+00", *["1.000"] * 5]
    # Two of three rotations are anchors; every one of both flips counts once.
    assert float(logits[-1][2]) == pytest.approx((4 + sum(float(row[2]) for row in logits[2:4])) / 6, abs=2e-3)
    assert float(features[2][2].split()[0]) > 0
    for cell in places[0][2:5]:
        agreeing, right = cell.split("; ")
        assert agreeing == "1.000, 0.0e+00 (0%)"
        ours, live = right.split(" / ")
        assert ours == live
    assert places[0][5] == "-"
    drawn = run(streets, reduced_teacher, *words, "--draws", 1)
    assert len(rows(drawn)[0]) == 2


def test_replay_is_off_by_the_encoding_only(streets, reduced_teacher):
    exact = [f"encoding.{part}=float32" for part in ("pillar_features", "logits")]
    for overrides, cells in ((exact, ["0.000 (1.000)"] * 5), ([], ["0.000 (1.000)"] * 5)):
        words = settings_words("profile=custom", "voxel_features=false", *exact) if overrides else []
        logits, _, features = rows(run(streets, reduced_teacher, "--policy", "replay", "--draws", 2, *words))
        assert [row[0] for row in logits] == ["the scan as it is", "drawn view 1"]
        for row, errors in zip(logits, features, strict=True):
            assert float(row[2]) > 0.99
            assert float(row[3]) < 1e-6
            assert errors[2:] == cells
            if overrides:
                assert row[3] == "0.0e+00"


def test_mixed_targets_are_off_near_the_cuts_most(streets, reduced_teacher):
    output = run(streets, reduced_teacher, "--policy", "mix", "--scans", 2, "--draws", 2)
    logits, places, features = rows(output)
    assert "by distance of points from the nearest cut" in output
    # 40 azimuth bins have room for one sector.
    assert [row[:2] for row in logits] == [["1 sector", "swapped"]]
    assert 0.5 < float(logits[0][2]) < 1
    assert float(logits[0][3]) > 0
    near, far = (float(places[0][column].split(",")[0]) for column in (2, -1))
    assert near < far
    assert "; " in places[0][2], "the labels say who is right"
    assert 0 < float(features[0][2].split()[0]) < 1


@pytest.mark.parametrize(("policy", "distance"), [(None, [0, 5, 3, 0]), ([3], [2, 2, 0, 3]), ([3, 6], [2, 0, 0, 0])])
def test_distances_are_from_the_border_or_from_cuts_and_never_across_the_border(policy, distance):
    voxels = torch.tensor([[0, 0, place, 0] for place in (0, 5, 3, 6)])
    shape = (4, 12 if policy is None else 8, 4)
    found = distance_of_points(cloud([0, 1, 2, 3], voxels, shape), [0, 11] if policy is None else policy)
    assert found.tolist() == (distance if policy else [0, 5, 3, 4])


def test_mixing_needs_two_scans(streets, reduced_teacher):
    words = ("--data", streets, "--teacher", reduced_teacher, "--policy", "mix", "--device", "cpu")
    reduced = settings_words(f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}")
    assert "policy mix needs two scans at least (--scans 2)" in fail(stage_one("consistency", *words, *reduced))


def test_augmentations_are_for_transport_only(streets, reduced_teacher):
    words = ("--data", streets, "--teacher", reduced_teacher, "--policy", "anchors", "--augmentation", "flip:y")
    assert "policy anchors draws its views" in fail(stage_one("consistency", *words))
