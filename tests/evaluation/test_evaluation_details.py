"""Evaluation by distance, of the teacher, against the teacher and over views, against counts by hand."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from common.base.errors import SettingsError
from common.scans.dataset import Dataset
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import batch_scans
from common.scans.scan_id import ScanId
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.__main__ import main
from stage2_train_student.evaluation.evaluate import teacher_logits
from stage2_train_student.training.runs import load_student
from tests.shared.by_hand import by_hand, iou_by_hand, miou_by_hand, student_words
from tests.shared.kitti import list_scans, read_points
from tests.shared.reduced import STREET_GRID, command, fail, one_thread, reduced_experiment, succeed

CPU = torch.device("cpu")
RANGES = [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, None)]


def test_numbers_by_distance_and_confusion_are_those_of_the_points(streets, student_file, experiment, semantic_kitti):
    words = ["evaluate", "--data", streets, *student_words(student_file, experiment), "--split", "08"]
    png = student_file.parent / "confusion.png"
    succeed(command(main, *words, "--confusion", png))
    numbers = json.loads((student_file.parent / "evaluation_08.json").read_text())

    student, _ = load_student(reduced_experiment(STREET_GRID), student_file, CPU)
    source = Dataset.open(streets, semantic_kitti).read(ScanId("08", "000000"))
    prediction = by_hand(student, source.points, STREET_GRID)
    assert [(part["from"], part["to"]) for part in numbers["ranges"]] == RANGES
    counts = np.zeros((20, 20), int)
    points = 0
    for part in numbers["ranges"]:
        truth, predicted = [], []
        for (x, y, _, _), true, label in zip(source.points.tolist(), source.labels.tolist(), prediction, strict=True):
            if part["from"] <= math.hypot(x, y) < (part["to"] or math.inf):
                truth.append(true)
                predicted.append(label)
                counts[true, label] += 1
        expected = iou_by_hand(truth, predicted, 20)
        assert part["miou"] == pytest.approx(miou_by_hand(expected, truth))
        assert part["miou_all_classes"] == pytest.approx(sum(expected.values()) / 19)
        assert part["points"] == sum(map(bool, truth))
        points += part["points"]
    assert points == numbers["points"]
    assert numbers["confusion"]["counts"] == counts.tolist()
    assert numbers["confusion"]["classes"] == semantic_kitti.names
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def teacher_labels(streets, reduced_teacher) -> dict[ScanId, np.ndarray]:
    """The teacher's class of each point of two labelled sequences, from its voxel logits."""
    grid, found = PolarGrid.named("polarnet", STREET_GRID), {}
    model = load_teacher(reduced_teacher, CPU).model
    for scan in list_scans(streets, ["00", "08"]):
        voxelised = voxelise(read_points(streets, scan), grid)
        with torch.no_grad(), one_thread():
            logits = model(batch_scans([voxelised], STREET_GRID)).logits
        found[scan] = logits[:, 1:].argmax(dim=1).numpy()[voxelised.point_voxel] + 1
    return found


def test_the_teacher_is_evaluated_by_the_same_command(
    streets, reduced_teacher, experiment, teacher_labels, semantic_kitti, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    teacher = tmp_path / "configs" / "teacher.pt"
    shutil.copy(reduced_teacher, teacher)
    words = ["evaluate", "--data", streets, "--experiment", experiment, "--teacher", teacher, "--device", "cpu"]
    output = succeed(command(main, *words, "--split", "00", "--split", "08", "--batch-size", 4))
    numbers = json.loads((tmp_path / "runs" / "teacher_evaluation_00_08.json").read_text())
    assert [path.name for path in teacher.parent.iterdir()] == [teacher.name]
    assert numbers["chosen_on"] == []
    assert f"teacher {teacher}, 6 scans" in output
    truth = [
        label for scan in teacher_labels for label in Dataset.open(streets, semantic_kitti).read(scan).labels.tolist()
    ]
    prediction = np.concatenate(list(teacher_labels.values())).tolist()
    expected = iou_by_hand(truth, prediction, 20)
    assert numbers["miou"] == pytest.approx(miou_by_hand(expected, truth), rel=1e-9)
    assert numbers["weights"] == str(teacher)


def test_agreement_is_the_share_of_all_points_with_the_teachers_class(
    streets, student_file, experiment, reduced_teacher, teacher_labels, tmp_path
):
    words = ["evaluate", "--data", streets, *student_words(student_file, experiment), "--split", "00", "--split", "08"]
    words += ["--agreement", reduced_teacher, "--json", tmp_path / "numbers.json"]
    output = succeed(command(main, *words))
    numbers = json.loads((tmp_path / "numbers.json").read_text())["agreement"]
    student, _ = load_student(reduced_experiment(STREET_GRID), student_file, CPU)
    same = near = points_near = points = 0
    for scan, labels in teacher_labels.items():
        cloud = read_points(streets, scan)
        of_student = np.array(by_hand(student, cloud, STREET_GRID))
        inside = np.hypot(cloud[:, 0], cloud[:, 1]) < 10
        same, points = same + (of_student == labels).sum(), points + len(labels)
        near, points_near = near + (of_student == labels)[inside].sum(), points_near + inside.sum()
    assert numbers["points"] == points
    assert numbers["share"] == pytest.approx(same / points, rel=1e-9)
    assert numbers["ranges"][0] == pytest.approx(near / points_near, rel=1e-9)
    assert numbers["teacher"] == str(reduced_teacher)
    assert 0 < numbers["share"] < 1
    assert "as the teacher" in output

    words = ["evaluate", "--data", streets, "--experiment", experiment, "--teacher", reduced_teacher, "--split", "08"]
    words += ["--agreement", reduced_teacher, "--json", tmp_path / "itself.json", "--device", "cpu"]
    succeed(command(main, *words))
    assert json.loads((tmp_path / "itself.json").read_text())["agreement"]["share"] == 1.0


def test_views_are_named_in_the_report_and_change_it(streets, student_file, experiment):
    words = ["evaluate", "--data", streets, *student_words(student_file, experiment)]
    succeed(command(main, *words))
    succeed(command(main, *words, "--views", 3, "--seed", 1, "--batch-size", 2))
    plain, averaged = (
        json.loads((student_file.parent / name).read_text())
        for name in ("evaluation_val.json", "evaluation_val_3views.json")
    )
    assert (plain["views"], averaged["views"], averaged["seed"]) == (1, 3, 1)
    assert plain["points"] == averaged["points"]
    assert plain["confusion"] != averaged["confusion"]


def test_contradicting_models_and_settings_are_refused(
    streets, student_file, experiment, reduced_teacher, runs, semantic_kitti
):
    words = ["evaluate", "--data", streets]
    message = fail(command(main, *words, *student_words(student_file, experiment), "--teacher", reduced_teacher))
    assert "--agreement TEACHER" in message
    assert "--experiment" in fail(command(main, *words, "--teacher", reduced_teacher))
    message = fail(command(main, *words, "--run", runs, "--set", "grid.volume=cylinder3d"))
    assert "--set changes the settings of --experiment" in message
    fewer = semantic_kitti.model_copy(update={"classes": semantic_kitti.classes[:5]})
    with pytest.raises(SettingsError, match="20 classes"):
        teacher_logits(load_teacher(reduced_teacher, CPU), fewer)
    assert "not a Cylinder3D checkpoint" in fail(
        command(main, *words, "--experiment", experiment, "--teacher", student_file, "--device", "cpu")
    )
