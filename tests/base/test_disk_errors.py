"""Run folders that cannot be written: each command says which file, why, and what to do, without a traceback."""

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.simulate.__main__ import main as simulate
from polar_distill import stage_one, stage_two
from tests.shared.reduced import STREET_GRID, command, experiment_overrides, fail, settings_words

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_DISK = 100_000
"""Bytes of the largest file that a command below can write."""


@pytest.fixture(params=["a file", "below a file", "read-only"])
def unusable(request, tmp_path) -> Path:
    """A folder in which nothing can be made."""
    (tmp_path / "taken").write_bytes(b"")
    return {
        "a file": tmp_path / "taken",
        "below a file": tmp_path / "taken" / "deep" / "run",
        "read-only": Path("/proc/self/run"),
    }[request.param]


def test_train_teacher_names_a_folder_that_cannot_be_used(unusable, sample_data):
    words = ["train-teacher", "--data", sample_data, "--run", unusable, "--device", "cpu"]
    small = ("grid.shape=[48,36,8]", "widths.base=4", "widths.point_channels=16", "steps=1", "validate_on=[]")
    assert f"{unusable}" in fail(command(stage_one, *words, *settings_words("train=['00']", *small)))


def test_train_names_a_folder_that_cannot_be_used(unusable, sample_data):
    words = ["train", "--data", sample_data, "--run", unusable, "--experiment", "baseline", "--device", "cpu"]
    changes = (*experiment_overrides(STREET_GRID), "targets=none", "steps=1", "train=[00]", "validate_on=[]")
    assert f"{unusable}" in fail(command(stage_two, *words, *settings_words(*changes)))


@pytest.mark.parametrize("option", ["--out", "--zip"])
def test_predict_names_a_place_that_cannot_be_used(unusable, sample_data, student_file, experiment, option):
    place = unusable if option == "--out" else unusable / "submission.zip"
    words = ["predict", "--data", sample_data, "--experiment", experiment, "--weights", student_file, "--device", "cpu"]
    assert f"{unusable}" in fail(command(stage_two, *words, "--split", "11", option, place))


def test_evaluate_refuses_a_place_that_cannot_be_used_before_it_works(unusable, sample_data, student_file, experiment):
    words = ["evaluate", "--data", sample_data, "--experiment", experiment, "--weights", student_file]
    for option in ("--json", "--confusion"):
        said = fail(command(stage_two, *words, "--device", "cpu", "--split", "08", option, unusable / "numbers.json"))
        assert f"{unusable}" in said
        assert "scan/s" not in said


def test_view_and_latency_refuse_a_place_that_cannot_be_used_before_they_work(sample_data, small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    (run / "latency.json").mkdir()
    for words in (
        ("latency", run, "--data", sample_data, "--repeats", 10**9),
        ("view", run, "00/no_such_scan", "--data", sample_data, "--out", run / "latency.json"),
    ):
        assert f"{run / 'latency.json'}: Is a directory" in fail(command(stage_two, *words))


def test_simulate_names_a_folder_that_cannot_be_used(unusable):
    small = ("scans={00: 1}", "sensor.beams=4", "sensor.columns=16")
    assert f"{unusable}" in fail(command(simulate, "--out", unusable, *settings_words(*small)))


def test_a_full_disk_while_training_is_named_and_leaves_no_half_file(sample_data, tmp_path):
    """Saving the state needs more than the disk has; the program is run as people run it."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))

    run = tmp_path / "run"
    words = ["train", "--data", sample_data, "--run", run, "--experiment", "baseline", "--device", "cpu"]
    changes = ("targets=none", "steps=1", "train=[00]", "validate_on=[]", "student.width=4")
    words += settings_words(*experiment_overrides(STREET_GRID), *changes)
    done = subprocess.run(
        [sys.executable, "-m", "polar_distill", *map(str, words)],
        cwd=REPOSITORY,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"Error: {run / 'last.pt'}: " in done.stderr
    assert not list(run.glob("*.p*"))
    assert (run / "settings.yaml").read_text().startswith("dataset:")
