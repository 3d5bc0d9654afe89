"""Evaluation and prediction: every point of every scan, against a count by hand."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.base.config import write_yaml
from common.base.errors import CheckpointError
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from stage2_train_student.__main__ import main
from stage2_train_student.training.runs import load_student
from tests.golden.golden_files import golden_weights, scans_folder
from tests.shared.by_hand import by_hand, iou_by_hand, miou_by_hand, student_words
from tests.shared.dataset_writer import street_scan, write_scan
from tests.shared.kitti import list_scans, read_points
from tests.shared.reduced import (
    NARROW,
    REAL_GRID,
    REPOSITORY,
    STREET_GRID,
    command,
    fail,
    reduced_experiment,
    succeed,
    train,
)

CPU = torch.device("cpu")


def test_miou_is_the_count_by_hand_over_all_points(streets, student_file, experiment, semantic_kitti):
    words = ["evaluate", "--data", streets, *student_words(student_file, experiment)]
    output = succeed(command(main, *words, "--split", "val", "--split", "00"))
    numbers = json.loads((student_file.parent / "evaluation_val_00.json").read_text())

    student, _ = load_student(reduced_experiment(STREET_GRID), student_file, CPU)
    truth: list[int] = []
    prediction: list[int] = []
    for scan in list_scans(streets, ["08", "00"]):
        source = Dataset.open(streets, semantic_kitti).read(scan)
        truth += source.labels.tolist()
        prediction += by_hand(student, source.points, STREET_GRID)
    expected = iou_by_hand(truth, prediction, 20)
    assert len(set(prediction)) > 3
    names = semantic_kitti.names
    assert numbers["iou"] == {
        names[label]: pytest.approx(expected[label], rel=1e-12) if label in expected else None for label in range(1, 20)
    }
    assert numbers["miou"] == pytest.approx(miou_by_hand(expected, truth), rel=1e-12)
    labelled = [(t, p) for t, p in zip(truth, prediction, strict=True) if t]
    assert numbers["points"] == len(labelled) < len(truth)
    assert numbers["accuracy"] == pytest.approx(sum(t == p for t, p in labelled) / len(labelled))
    assert numbers["scans"] == 6
    assert numbers["splits"] == ["val", "00"]
    assert numbers["weights"] == str(student_file)
    assert f"{100 * numbers['miou']:.2f}" in output
    for name in names[1:]:
        assert name in output


def test_prediction_files_hold_one_valid_raw_id_for_each_point_of_every_scan(
    streets, student_file, experiment, semantic_kitti, tmp_path
):
    words = ["predict", "--data", streets, *student_words(student_file, experiment), "--out", tmp_path / "out"]
    assert "8 prediction files" in succeed(
        command(main, *words, "--split", "train", "--split", "val", "--split", "test")
    )
    scans = list_scans(streets, ["00", "08", "11"])
    check_predictions(tmp_path / "out", streets, scans, semantic_kitti)
    student, _ = load_student(reduced_experiment(STREET_GRID), student_file, CPU)
    for scan in (ScanId("08", "000000"), ScanId("11", "000001")):
        labels = by_hand(student, read_points(streets, scan), STREET_GRID)
        written = np.fromfile(prediction_path(tmp_path / "out", scan), "<u4")
        assert written.tolist() == [semantic_kitti.classes[label].raw_id for label in labels]


def test_real_scans_are_predicted_whole(student_file, semantic_kitti, tmp_path):
    write_yaml(reduced_experiment(REAL_GRID), tmp_path / "real.yaml")
    root = scans_folder()
    words = ["predict", "--data", root, *student_words(student_file, tmp_path / "real.yaml"), "--out", tmp_path / "out"]
    succeed(command(main, *words, "--split", "train", "--split", "test"))
    scans = list_scans(root, ["00", "11"])
    assert len(list((tmp_path / "out").rglob("*.label"))) == len(scans)
    check_predictions(tmp_path / "out", root, scans, semantic_kitti)


def prediction_path(out: Path, scan: ScanId) -> Path:
    return out / "sequences" / scan.sequence / "predictions" / f"{scan.frame}.label"


def check_predictions(out: Path, data: Path, scans: list[ScanId], label_map: LabelMap) -> None:
    """Each scan has a file of four bytes a point; every id is one that the benchmark counts."""
    valid = {info.raw_id for info in label_map.classes} - {0}
    for scan in scans:
        content = prediction_path(out, scan).read_bytes()
        assert len(content) == 4 * len(read_points(data, scan))
        assert set(np.frombuffer(content, "<u4").tolist()) <= valid
    assert not list(out.rglob("*.partial"))


def test_points_that_are_all_in_one_voxel_and_far_outside_get_a_label(student_file, experiment, tmp_path):
    points = np.array([[200.0, 0, 50, 0.1], [0, 0, 0, 0], [200.0, 0, 50, 0.2]], np.float32)
    write_scan(tmp_path / "data", ScanId("11", "000000"), points)
    words = ["predict", "--data", tmp_path / "data", *student_words(student_file, experiment), "--out", tmp_path]
    succeed(command(main, *words, "--split", "11"))
    written = np.fromfile(prediction_path(tmp_path, ScanId("11", "000000")), "<u4")
    assert len(written) == 3
    assert written.all()
    assert written[0] == written[2]


def test_scans_without_labels_are_refused_by_evaluate(streets, student_file, experiment):
    words = ["evaluate", "--data", streets, *student_words(student_file, experiment), "--split", "00", "--split", "11"]
    message = fail(command(main, *words))
    assert "2 of 7 scans have no labels, the first is 11/000000" in message
    assert "predict" in message
    assert not (student_file.parent / "evaluation_00_11.json").exists()


def test_a_run_is_evaluated_by_its_folder_and_its_student_loads_back(streets, street_cache, runs, semantic_kitti):
    run = runs / "full"
    succeed(train(streets, street_cache, run, "steps=1", "batch_size=5"))
    output = succeed(command(main, "evaluate", "--data", streets, "--run", run, "--device", "cpu"))
    numbers = json.loads((run / "evaluation_val.json").read_text())
    assert numbers["weights"] == str(run / "student_best.pt")
    assert numbers["chosen_on"] == ["08"]
    assert "student_best.pt was chosen among the run's students by its mIoU on 08" in output
    [validated] = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["kind"] == "validation"
    ]
    assert numbers["miou"] == pytest.approx(validated["miou"], rel=1e-9)

    best, last = torch.load(run / "student_best.pt"), torch.load(run / "student_last.pt")
    assert best.keys() == golden_weights("student_reduced", "student.").keys()
    assert all(torch.equal(best[name], last[name]) for name in best)
    student, _ = load_student(reduced_experiment(STREET_GRID, NARROW), run / "student_last.pt", CPU)
    state = torch.load(run / "last.pt", weights_only=True)["student"]
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    assert not student.training

    (run / "student_best.pt").unlink()
    output = succeed(command(main, "evaluate", "--data", streets, "--run", run, "--device", "cpu"))
    assert str(run / "student_last.pt") in output
    assert "was chosen" not in output
    numbers = json.loads((run / "evaluation.json").read_text())
    assert (numbers["chosen_on"], numbers["trained_on"]) == ([], [])
    output = succeed(command(main, "evaluate", "--data", streets, "--run", run, "--split", "00", "--device", "cpu"))
    assert "the student was trained on 00: its mIoU there says nothing about scans that it has not seen" in output
    succeed(command(main, "export", run, "--to", run / "shipped", "--no-onnx"))
    card = (run / "shipped" / "README.md").read_text()
    assert "**The student was trained on 00: its mIoU there says nothing" in card
    assert "| labels used | all |" in card


def test_scans_without_one_labelled_point_have_no_miou(student_file, experiment, tmp_path):
    points, raw = street_scan(200)
    write_scan(tmp_path / "data", ScanId("08", "000000"), points, np.zeros_like(raw))
    output = succeed(command(main, "evaluate", "--data", tmp_path / "data", *student_words(student_file, experiment)))
    assert "labelled points 0" in output
    text = (student_file.parent / "evaluation_val.json").read_text()
    assert "NaN" not in text
    numbers = json.loads(text)
    assert numbers["points"] == 0
    assert numbers["miou"] is None


def test_a_student_of_another_size_is_refused_naming_what_differs(streets, tmp_path, student_file):
    write_yaml(reduced_experiment(STREET_GRID, "student.point_channels=32"), tmp_path / "other.yaml")
    message = fail(command(main, "evaluate", "--data", streets, *student_words(student_file, tmp_path / "other.yaml")))
    assert "PPmodel.10.weight" in message
    assert "(64, 256) in the file, (32, 256) in the model" in message


def test_teacher_weights_are_refused_as_not_a_student(reduced_teacher):
    with pytest.raises(CheckpointError, match="does not fit PolarNet"):
        load_student(reduced_experiment(STREET_GRID), reduced_teacher, CPU)


@pytest.mark.parametrize("words", [[], ["--weights", "student.pt"], ["--experiment", "full"]])
def test_a_student_must_be_named(streets, words):
    assert "name a student" in fail(command(main, "evaluate", "--data", streets, *words))


def test_a_folder_without_a_run_or_a_student_is_named(streets, tmp_path, experiment):
    assert "no run here" in fail(command(main, "evaluate", "--data", streets, "--run", tmp_path / "none"))
    (tmp_path / "settings.yaml").write_bytes(experiment.read_bytes())
    assert "no student saved yet" in fail(command(main, "evaluate", "--data", streets, "--run", tmp_path))


def test_an_unknown_experiment_is_refused_naming_those_there_are(streets, student_file, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    message = fail(command(main, "evaluate", "--data", streets, *student_words(student_file, Path("fulll"))))
    for name in ("baseline", "full", "logit", "lwd", "vpd"):
        assert name in message


def test_accuracy_and_miou_are_shares(streets, student_file, experiment):
    succeed(command(main, "evaluate", "--data", streets, *student_words(student_file, experiment)))
    numbers = json.loads((student_file.parent / "evaluation_val.json").read_text())
    assert all(math.isfinite(numbers[name]) and 0 <= numbers[name] <= 1 for name in ("miou", "accuracy"))


def test_without_a_split_val_is_evaluated_and_every_sequence_predicted(streets, student_file, experiment, tmp_path):
    student = student_words(student_file, experiment)
    output = succeed(command(main, "evaluate", "--data", streets, *student))
    assert "evaluation_val.json" in output
    shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
    shutil.copytree(streets, tmp_path / "dataset")
    shutil.rmtree(tmp_path / "dataset/sequences/08")
    output = succeed(command(main, "evaluate", "--data", tmp_path / "dataset", *student))
    assert "no sequence of val is on this disk; evaluating on 00" in output
    out = tmp_path / "predictions"
    succeed(command(main, "predict", "--data", streets, *student, "--out", out))
    scans = [path.stem for path in sorted((streets / "sequences").glob("*/velodyne/*.bin"))]
    assert [path.stem for path in sorted(out.glob("sequences/*/predictions/*.label"))] == scans
