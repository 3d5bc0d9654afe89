"""Pictures: every pixel where the scene says it is, in the official colours; the commands that draw them."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from common.base.config import write_yaml
from common.base.errors import SettingsError, StoreError
from common.scans.dataset import Dataset
from common.scans.polar_grid import PolarGrid, bin_indices, to_polar, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.teacher import Teacher
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.training.metrics import ConfusionMatrix
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.__main__ import main
from stage2_train_student.evaluation.picture_sources import (
    Viewers,
    cached_teacher,
    feature_norm_map,
    label_weight_map,
    live_teacher,
    scan_picture,
)
from stage2_train_student.evaluation.render import (
    BACKGROUND,
    RIGHT,
    WITHOUT_LABEL,
    WRONG,
    ScanPicture,
    class_colours,
    draw_confusion,
    draw_scan,
    error_colours,
    panels,
    pillar_map,
    pillars_image,
    points_image,
)
from tests.golden.golden_files import golden_weights
from tests.shared.reduced import STREET_GRID, command, fail, one_thread, reduced_experiment, succeed

CPU = torch.device("cpu")
GRID = PolarGrid.named("polarnet", STREET_GRID)
SCAN = ScanId("00", "000001")
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), np.array((255, 255, 255), np.uint8)


def cloud(*places: tuple[float, float, float]) -> np.ndarray:
    return np.array([(*place, 0.0) for place in places], np.float32)


def test_forward_is_up_and_left_is_left():
    image = points_image(cloud((9.5, 0.5, 0), (0.5, 9.5, 0)), np.array([RED, GREEN], np.uint8), 10.0, 20, dot=1)
    assert image[0, 9].tolist() == list(RED)
    assert image[9, 0].tolist() == list(GREEN)
    assert (image == WHITE).all(axis=2).sum() == 20 * 20 - 2


@pytest.mark.parametrize("dot", [1, 2, 3])
def test_the_highest_of_points_at_one_place_is_seen(dot):
    places = cloud((3.2, 3.2, 1), (3.2, 3.2, 2), (3.2, 3.2, -1), (2.9, 3.2, 0.5))
    colours = np.array([RED, GREEN, RED, RED], np.uint8)
    image = points_image(places, colours, 10.0, 20, dot)
    assert (image == GREEN).all(axis=2).sum() == dot * dot
    assert (image[6, 6] == GREEN).all()


def test_points_outside_the_square_are_not_drawn():
    outside = cloud((10.5, 0, 0), (-10.5, 0, 0), (0, 10.5, 0), (0, -10.5, 0), (80, 80, 0))
    assert (points_image(outside, np.tile(np.array(RED, np.uint8), (5, 1)), 10.0, 20, dot=1) == WHITE).all()


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_a_pixel_shows_the_pillar_that_its_centre_lies_in(stride):
    shape = (STREET_GRID[0] // stride, STREET_GRID[1] // stride)
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    image = pillars_image(values, GRID, 60.0, 40)
    for row, column in np.ndindex(40, 40):
        x, y = 60 - (row + 0.5) * 3, 60 - (column + 0.5) * 3
        polar = to_polar(np.array([[x, y, 0]], np.float32))
        if not 3 <= polar[0, 0] <= 50:
            assert np.isnan(image[row, column])
            continue
        rho, phi, _ = bin_indices(polar, GRID)[0] // stride
        assert image[row, column] == values[rho, phi]


def test_errors_are_right_wrong_or_without_ground_truth():
    colours = error_colours(np.array([1, 2, 3, 1]), np.array([1, 1, 0, 0]))
    assert colours.tolist() == [list(RIGHT), list(WRONG), list(WITHOUT_LABEL), list(WITHOUT_LABEL)]


def test_feature_norms_and_label_weights_by_hand(streets, semantic_kitti):
    layer = PillarFeatures(torch.tensor([[0, 1, 2], [0, 3, 0]]), torch.tensor([[3.0, 4.0], [0.0, -2.0]]), (4, 3))
    norms = feature_norm_map(layer)
    assert norms.shape == (4, 3)
    assert (norms[1, 2], norms[3, 0], np.isnan(norms).sum()) == (5, 2, 10)

    source = Dataset.open(streets, semantic_kitti).read(SCAN)
    voxelised = voxelise(source.points, GRID, source.labels)
    expected = np.zeros(STREET_GRID[:2])
    for (rho, phi, _), label in zip(voxelised.voxels.tolist(), voxelised.voxel_labels.tolist(), strict=True):
        expected[rho, phi] += semantic_kitti.class_weights()[label] / 50 if label else 0.0
    weights = label_weight_map(batch_scans([voxelised], STREET_GRID), semantic_kitti)
    np.testing.assert_allclose(np.nan_to_num(weights), expected, rtol=1e-5)
    assert (weights[np.isfinite(weights)] > 0).all()
    np.testing.assert_array_equal(pillar_map(np.array([[0, 1]]), np.array([7.0]), (1, 2)), [[np.nan, 7]])


def made_up_picture(label_map) -> ScanPicture:
    generator = np.random.default_rng(0)
    points = generator.uniform(-40, 40, (400, 4)).astype(np.float32)
    labels = generator.integers(0, 20, 400)
    maps = {"label_weights": generator.uniform(0.1, 9, (48, 40)), "feature_norms": generator.uniform(1, 9, (24, 20))}
    return ScanPicture("scan", points, labels, labels.clip(1), 1 + (labels + 5) % 19, layer="down1c", **maps)


def titles(picture: ScanPicture, label_map) -> list[str]:
    return [panel.title.partition(" (")[0] for panel in panels(picture, label_map, GRID, 50.0, 40)]


def test_what_is_known_is_drawn_in_official_colours(semantic_kitti):
    picture = made_up_picture(semantic_kitti)
    shown = panels(picture, semantic_kitti, GRID, 50.0, 200)
    assert [panel.title for panel in shown] == [
        "ground truth",
        "student",
        "teacher",
        "student differs from teacher (0.0 % the same)",
        "label weights of pillars",
        "errors of the student (100.0 % right)",
        "errors of the teacher (0.0 % right)",
        "length of the teacher's pillar features, down1c",
    ]
    official = {(100, 150, 245), (255, 0, 255), (0, 175, 0)}
    assert official <= set(map(tuple, class_colours(semantic_kitti).tolist()))
    for panel, labels in zip(shown[:3], (picture.truth, picture.student, picture.teacher), strict=True):
        seen = set(map(tuple, panel.image.reshape(-1, 3).tolist())) - {tuple(BACKGROUND.tolist())}
        assert seen == {semantic_kitti.classes[label].colour for label in set(labels.tolist())}
    png = png_of(draw_scan(picture, semantic_kitti, GRID))
    for info in semantic_kitti.classes:
        assert (png == info.colour).all(axis=2).any(), info.name


def png_of(figure: Figure) -> np.ndarray:
    """Pixels of a figure, uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return np.rint(255 * matplotlib.image.imread(buffer)[..., :3]).astype(np.uint8)


def test_what_is_unknown_is_left_out(semantic_kitti):
    points = made_up_picture(semantic_kitti).points
    labels = np.ones(400, np.uint8)
    assert titles(ScanPicture("scan", points, truth=labels), semantic_kitti) == ["ground truth"]
    assert titles(ScanPicture("scan", points, student=labels), semantic_kitti) == ["student"]
    both = titles(ScanPicture("scan", points, student=labels, teacher=labels), semantic_kitti)
    assert both == ["student", "teacher", "student differs from teacher"]
    no_weights = np.full((48, 40), np.nan)
    unlabelled = ScanPicture("scan", points, truth=0 * labels, student=labels, label_weights=no_weights)
    assert panels(unlabelled, semantic_kitti, GRID, 50.0, 40)[3].title == "errors of the student (no labels)"
    assert png_of(draw_scan(unlabelled, semantic_kitti, GRID)).size
    assert png_of(draw_scan(ScanPicture("scan", points), semantic_kitti, GRID)).size


def test_a_confusion_matrix_is_drawn_in_shares_of_the_truth(semantic_kitti):
    truth, prediction = np.array([1, 1, 1, 1, 9, 0]), np.array([1, 1, 1, 13, 9, 4])
    figure = draw_confusion(ConfusionMatrix.of(truth, prediction, 20), semantic_kitti, "title")
    [axis, _] = figure.axes
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(0, 0): "75", (12, 0): "25", (8, 8): "100"}
    assert axis.get_yticklabels()[0].get_text() == "car (4)"
    assert png_of(figure).size


@pytest.fixture(scope="module")
def student_words(tmp_path_factory) -> list[str]:
    """Words that name the golden reduced student and an experiment that fits it."""
    folder = tmp_path_factory.mktemp("student")
    torch.save(golden_weights("student_reduced", "student."), folder / "published.pt")
    write_yaml(reduced_experiment(STREET_GRID), folder / "streets.yaml")
    return ["--weights", str(folder / "published.pt"), "--experiment", str(folder / "streets.yaml"), "--device", "cpu"]


def picture_size(path: Path) -> tuple[int, ...]:
    return matplotlib.image.imread(path).shape


def test_the_command_draws_each_scan(streets, student_words, reduced_teacher, street_cache, tmp_path):
    words = ["render", "--data", streets, *student_words, "--out", tmp_path]
    succeed(command(main, *words, "--scan", "00/000001", "--scan", "11/000000", "--teacher", reduced_teacher))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00_000001.png", "11_000000.png"]
    whole, unlabelled = (picture_size(tmp_path / name) for name in ("00_000001.png", "11_000000.png"))
    assert whole[0] > unlabelled[0]

    live = (tmp_path / "00_000001.png").read_bytes()
    output = succeed(command(main, *words, "--scan", "00/000001", "--cache", street_cache))
    assert "scan 00/000001" in output
    np.testing.assert_allclose(
        matplotlib.image.imread(tmp_path / "00_000001.png"), matplotlib.image.imread(io.BytesIO(live)), atol=0.02
    )
    experiment = student_words[2:]
    succeed(command(main, "render", "--data", streets, *experiment, "--scan", "00/000001", "--out", tmp_path))
    assert picture_size(tmp_path / "00_000001.png")[0] < whole[0]


def test_cache_and_live_teacher_say_the_same(streets, semantic_kitti, reduced_teacher, street_cache):
    with one_thread():
        live, cached = (
            scan_picture(Dataset.open(streets, semantic_kitti), SCAN, Viewers(GRID, CPU, None, source, "up2e"))
            for source in (
                live_teacher(load_teacher(reduced_teacher, CPU), ["up2e"], semantic_kitti),
                cached_teacher(str(street_cache), ["up2e"], GRID, semantic_kitti),
            )
        )
    assert live.feature_norms.shape == (24, 20)
    np.testing.assert_allclose(cached.feature_norms, live.feature_norms, rtol=1e-4)
    np.testing.assert_array_equal(cached.teacher, live.teacher)
    assert len(live.teacher) == len(live.points)
    assert live.student is None


class LogitsOnly(Teacher):
    """Calls everything class 3, and has no layers."""

    name, hash, classes, channels = "logits_only", "0" * 64, 20, {}

    @classmethod
    def load(cls, checkpoint: Path, device: torch.device) -> Teacher:
        return cls()

    def targets(self, batch: ScanBatch, layers: Sequence[str], voxel_features: bool = False) -> TeacherTargets:
        assert not layers
        return TeacherTargets(batch.voxels, torch.eye(20)[torch.full((len(batch.voxels),), 3)], {})


def test_a_teacher_without_layers_is_drawn_without_features(streets, semantic_kitti):
    teacher = live_teacher(LogitsOnly(), ["up0e"], semantic_kitti)
    picture = scan_picture(Dataset.open(streets, semantic_kitti), SCAN, Viewers(GRID, CPU, None, teacher, "up0e"))
    assert (picture.teacher == 3).all()
    assert picture.feature_norms is None


def test_a_view_that_is_not_the_scan_itself_is_refused(streets, semantic_kitti, street_cache, monkeypatch):
    read = TargetStore.read
    monkeypatch.setattr(TargetStore, "read", lambda store, scan, view, *rest: read(store, scan, 1, *rest))
    teacher = cached_teacher(str(street_cache), ["up0e"], GRID, semantic_kitti)
    with pytest.raises(StoreError, match="view 0 of scan 00/000001"):
        scan_picture(Dataset.open(streets, semantic_kitti), SCAN, Viewers(GRID, CPU, None, teacher, "up0e"))


def test_what_cannot_be_drawn_is_refused(
    streets, student_words, semantic_kitti, reduced_teacher, street_cache, tmp_path
):
    words = ["render", "--data", streets, *student_words, "--out", tmp_path, "--scan", "00/000001"]
    teachers = ["--teacher", reduced_teacher, "--cache", street_cache]
    assert "give one of them" in fail(command(main, *words, *teachers))
    assert "no layer 'up9e'" in fail(command(main, *words, *teachers[:2], "--layer", "up9e"))
    assert "up9e" in fail(command(main, *words, *teachers[2:], "--layer", "up9e"))
    assert "does not name a scan" in fail(command(main, *words, "--scan", "000001"))
    assert "000077.bin" in fail(command(main, *words[:-2], "--scan", "00/000077"))
    fewer = semantic_kitti.model_copy(update={"classes": semantic_kitti.classes[:5]})
    with pytest.raises(SettingsError, match="20 classes"):
        live_teacher(load_teacher(reduced_teacher, CPU), ["up0e"], fewer)
    assert not list(tmp_path.iterdir())
