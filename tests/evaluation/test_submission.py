"""Submissions against what the benchmark's own tools say they check and compute, done here from the description."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.base.config import write_yaml
from common.base.errors import SettingsError
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.training.predictor import ScanPrediction
from stage2_train_student.__main__ import main
from stage2_train_student.evaluation.submission import write_predictions
from tests.golden.golden_files import golden_weights
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import DATASET, STREET_GRID, command, fail, reduced_experiment, succeed

TEST_SEQUENCES = [str(number) for number in range(11, 22)]


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> list[str]:
    """Words that name the golden reduced student and an experiment that fits it."""
    folder = tmp_path_factory.mktemp("student")
    torch.save(golden_weights("student_reduced", "student."), folder / "published.pt")
    write_yaml(reduced_experiment(STREET_GRID), folder / "streets.yaml")
    words = ["--weights", folder / "published.pt", "--experiment", folder / "streets.yaml", "--device", "cpu"]
    return list(map(str, words))


@pytest.fixture(scope="module")
def test_split(tmp_path_factory) -> Path:
    """One short scan of each test sequence, two of the first, without labels."""
    root = tmp_path_factory.mktemp("test_split") / "dataset"
    scans = dict.fromkeys(TEST_SEQUENCES, 1) | {"11": 2}
    write_dataset(root, scans, points=60, unlabelled=tuple(TEST_SEQUENCES))
    return root


def submission_problem(path: Path, dataset: Path) -> str | None:
    """What the benchmark's validation refuses: the name, missing folder entries, missing or wrong-sized files."""
    if not path.name.endswith(".zip"):
        return "the name does not end in .zip"
    with zipfile.ZipFile(path) as archive:
        size_of = {info.filename: info.file_size for info in archive.infolist()}
    for sequence in TEST_SEQUENCES:
        for folder in ("sequences/", f"sequences/{sequence}/", f"sequences/{sequence}/predictions/"):
            if folder not in size_of:
                return f"no entry {folder}"
        for scan in (dataset / "sequences" / sequence / "velodyne").iterdir():
            name = f"sequences/{sequence}/predictions/{scan.stem}.label"
            if name not in size_of:
                return f"no file {name}"
            if size_of[name] / 4 != scan.stat().st_size / 16:
                return f"{name} has the wrong number of labels"
    return None


def official_scores(dataset: Path, predictions: Path, sequences: list[str]) -> dict[str, float]:
    """The benchmark's scores, point by point: labels through learning_map, points without a label left out, IoU =
    hits / (hits + false positives + false negatives), 0 for a class that never occurs, mean over all 19 classes."""
    learning_map = yaml.safe_load(DATASET.read_text())["learning_map"]
    classes = yaml.safe_load(DATASET.read_text())["classes"]
    hits, wrongly, missed = ([0] * len(classes) for _ in range(3))
    for sequence in sequences:
        for truth_file in sorted((dataset / "sequences" / sequence / "labels").glob("*.label")):
            predicted_file = predictions / "sequences" / sequence / "predictions" / truth_file.name
            truths, predicteds = (
                [learning_map[raw & 0xFFFF] for (raw,) in struct.iter_unpack("<I", path.read_bytes())]
                for path in (truth_file, predicted_file)
            )
            for truth, predicted in zip(truths, predicteds, strict=True):
                if truth == 0:
                    continue
                if truth == predicted:
                    hits[truth] += 1
                else:
                    missed[truth] += 1
                    wrongly[predicted] += 1
    scores = {}
    for label in range(1, len(classes)):
        union = hits[label] + wrongly[label] + missed[label]
        scores[classes[label]["name"]] = hits[label] / union if union else 0.0
    scores["mean"] = sum(scores.values()) / 19
    scores["accuracy"] = sum(hits) / (sum(hits) + sum(missed))
    return scores


@pytest.mark.parametrize("views", [1, 3])
def test_the_official_score_of_the_files_is_our_miou(streets, student, tmp_path, views):
    chosen = ["--data", streets, *student, "--views", views, "--split", "00", "--split", "08"]
    succeed(command(main, "predict", *chosen, "--out", tmp_path))
    succeed(command(main, "evaluate", *chosen, "--json", tmp_path / "numbers.json", "--batch-size", 2))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    official = official_scores(streets, tmp_path, ["00", "08"])
    assert numbers["miou_all_classes"] == pytest.approx(official["mean"], rel=1e-9)
    assert numbers["accuracy"] == pytest.approx(official["accuracy"], rel=1e-9)
    for name, share in numbers["iou"].items():
        assert (share or 0.0) == pytest.approx(official[name], rel=1e-9), name
    assert None in numbers["iou"].values()
    assert numbers["miou"] > numbers["miou_all_classes"] > 0


def test_the_zip_is_what_the_server_takes(test_split, student, tmp_path):
    zips = [tmp_path / "submission.zip", tmp_path / "again.zip"]
    for path in zips:
        output = succeed(command(main, "predict", "--data", test_split, *student, "--zip", path))
        assert "12 prediction files" in output
        assert "lacks" not in output
    assert submission_problem(zips[0], test_split) is None
    assert zips[0].read_bytes() == zips[1].read_bytes()
    assert not list(tmp_path.glob("*.partial"))

    succeed(command(main, "predict", "--data", test_split, *student, "--out", tmp_path / "folder"))
    with zipfile.ZipFile(zips[0]) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        assert len(files) == len(list((tmp_path / "folder").rglob("*.label"))) == 12
        assert archive.testzip() is None
        for name in files:
            assert archive.read(name) == (tmp_path / "folder" / name).read_bytes()
        archive.extractall(tmp_path / "unpacked")
    assert (tmp_path / "unpacked/sequences/11/predictions/000001.label").stat().st_size == 240


def test_a_zip_beside_a_folder_holds_the_test_split_and_not_every_sequence_on_disk(streets, student, tmp_path):
    """`make predict ZIP=` always names a folder as well."""
    words = ["predict", "--data", streets, *student, "--zip", tmp_path / "a.zip", "--out", tmp_path / "folder"]
    succeed(command(main, *words))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        sequences = {name.split("/")[1] for name in archive.namelist()} - {""}
    assert sequences == {"11"}
    assert {path.name for path in (tmp_path / "folder/sequences").iterdir()} == {"11"}


def test_a_zip_without_all_test_sequences_is_written_with_a_note(streets, student, tmp_path):
    words = ["predict", "--data", streets, *student, "--zip", tmp_path / "part.zip", "--out", tmp_path / "folder"]
    output = succeed(command(main, *words, "--split", "11", "--split", "00"))
    assert "the zip lacks 12, 13, 14" in output
    assert "no entry sequences/12/" in str(submission_problem(tmp_path / "part.zip", streets))
    with zipfile.ZipFile(tmp_path / "part.zip") as archive:
        assert "sequences/00/predictions/000004.label" in archive.namelist()
    assert (tmp_path / "folder/sequences/00/predictions/000004.label").is_file()


def test_a_run_that_breaks_off_leaves_no_zip(semantic_kitti, tmp_path):
    def broken():
        yield ScanPrediction(ScanId("11", "000000"), np.array([1, 2], np.uint8), None)
        raise KeyboardInterrupt

    dataset = Dataset.open(tmp_path, semantic_kitti)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(broken(), dataset, tmp_path / "folder", tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    written = np.fromfile(tmp_path / "folder/sequences/11/predictions/000000.label", "<u4")
    assert written.tolist() == [10, 11]


def test_predictions_must_go_somewhere_the_server_takes(streets, student, semantic_kitti, tmp_path):
    assert "--out FOLDER, --zip FILE" in fail(command(main, "predict", "--data", streets, *student))
    message = fail(command(main, "predict", "--data", streets, *student, "--zip", tmp_path / "labels.tar"))
    assert "end in .zip" in message
    with pytest.raises(SettingsError, match="say where"):
        write_predictions([], Dataset.open(tmp_path, semantic_kitti), None, None)
