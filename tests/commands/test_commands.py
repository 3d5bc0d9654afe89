"""Both stages as a user runs them, each command in a process of its own."""

import json

import numpy as np
import torch

from common.targets.store import TargetStore
from common.training.recorder import read_metrics
from stage1_dump_teacher.__main__ import main as stage_one
from stage2_train_student.__main__ import main as stage_two
from tests.shared.kitti import list_scans, read_points
from tests.shared.reduced import (
    STREET_GRID,
    command,
    dump_words,
    encoding_words,
    finish,
    start,
    succeed,
    train,
    train_words,
)

WITHOUT_SPCONV = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"spconv", "cumm", "stage1_dump_teacher"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Refuse())
sys.argv = ["stage2_train_student", *sys.argv[1:]]
runpy.run_module("stage2_train_student", run_name="__main__")
"""
"""Stage two on a machine where spconv is not installed, nor stage one."""


def test_dump_train_evaluate_and_predict_end_to_end(streets, reduced_teacher, tmp_path, runs):
    cache, run, out = tmp_path / "cache", runs / "full", tmp_path / "out"
    dumped = dump_words(streets, reduced_teacher, cache, STREET_GRID, "splits=[train]", *encoding_words("float16"))
    output = finish(start("-m", "stage1_dump_teacher", *dumped))
    assert "5 scan-views written" in output
    assert "next: polar-distill train --data" in output
    assert len(TargetStore.open(cache).finished()) == 5

    trained = train_words(streets, cache, run, "epochs=2", "batch_size=3")
    output = finish(start("-m", "stage2_train_student", *trained))
    assert "4 steps, 2 epochs finished; best mIoU" in output
    records = read_metrics(run, "train")
    assert len(records) == 4
    assert records[-1]["loss"] < records[0]["loss"]

    student = ["--data", streets, "--run", run, "--device", "cpu"]
    evaluation = start("-m", "stage2_train_student", "evaluate", *student)
    prediction = start("-m", "stage2_train_student", "predict", *student, "--split", "11", "--out", out)
    assert "mIoU" in finish(evaluation)
    assert json.loads((run / "evaluation_val.json").read_text())["points"] > 0
    assert "2 prediction files" in finish(prediction)
    for scan in list_scans(streets, ["11"]):
        labels = np.fromfile(out / "sequences" / "11" / "predictions" / f"{scan.frame}.label", "<u4")
        assert len(labels) == len(read_points(streets, scan))
        assert labels.all()


def test_stage_two_trains_where_spconv_cannot_be_imported(streets, street_cache, runs):
    words = train_words(streets, street_cache, runs / "without", "steps=2", "batch_size=3")
    finish(start("-c", WITHOUT_SPCONV, *words))
    succeed(train(streets, street_cache, runs / "with", "steps=2", "batch_size=3"))
    one, other = (torch.load(runs / name / "student_last.pt") for name in ("without", "with"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_stub_does_keep_spconv_away(streets, reduced_teacher, runs):
    """The online teacher needs spconv: without it, the same command must fail on the import."""
    words = train_words(streets, None, runs / "online", "targets=online", "steps=1")
    process = start("-c", WITHOUT_SPCONV, *words, "--teacher", reduced_teacher)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "No module named 'stage1_dump_teacher'" in output


def test_an_error_of_the_user_is_a_message_and_not_a_traceback(tmp_path):
    options = ["--data", tmp_path / "nowhere", "--teacher", tmp_path / "none.pt", "--device", "cpu"]
    process = start("-m", "stage1_dump_teacher", "dump", *options)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert output.startswith("Error: ")
    assert str(tmp_path / "nowhere") in output
    assert "Traceback" not in output


def test_every_command_explains_itself():
    helps = {
        ("stage1_dump_teacher", "dump"): ("--data", "--teacher", "--cache", "--config", "--device", "--set"),
        ("stage2_train_student", "train"): ("--data", "--experiment", "--run", "--cache", "--resume", "--set"),
        ("stage2_train_student", "evaluate"): ("--data", "--run", "--weights", "--experiment", "--split"),
        ("stage2_train_student", "predict"): ("--data", "--run", "--weights", "--out"),
    }
    mains = {"stage1_dump_teacher": stage_one, "stage2_train_student": stage_two}
    for (stage, name), options in helps.items():
        text = succeed(command(mains[stage], name, "--help"))
        for option in options:
            assert option in text, f"{stage} {name} {option}"


def test_results_are_readable_without_this_project(streets, street_cache, runs):
    """Settings and environment are plain YAML and JSON; the student is a plain state dict."""
    run = runs / "plain"
    succeed(train(streets, street_cache, run, "steps=1", "validate_on=[]"))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    settings = (run / "settings.yaml").read_text()
    assert "learning_rate: 0.0005" in settings
    student = torch.load(run / "student_last.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in student.values())
