"""The demo: its settings, the teacher that it ships, and all its steps at the smallest size."""

import json
from pathlib import Path

import pytest
import torch

from common.base.config import load_settings
from common.scans.label_map import load_label_map
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.demo import CONFIGS, PAGE, SUMMARY, TEACHER, VIEW, DemoFolders, run
from stage2_train_student.settings import ExperimentSettings
from tests.shared.reduced import DATASET, REPOSITORY

LARGEST_TEACHER = 6_000_000
"""Bytes; it travels with the repository."""

ONE_STEP = f"""
dataset: {DATASET}
epochs: 1
student: {{width: 4, point_channels: 8, compressed_channels: 4, dropblock: 0.0}}
optimiser: {{schedule: {{kind: constant, warm_up: 0}}}}
"""


def test_the_shipped_teacher_is_the_one_that_its_settings_describe():
    settings = load_settings(TeacherTrainingSettings, REPOSITORY / CONFIGS / "train_teacher.yaml")
    widths = load_teacher(REPOSITORY / TEACHER, torch.device("cpu")).model.widths
    assert (widths.base, widths.point_channels) == (settings.widths.base, settings.widths.point_channels)
    assert widths.classes == len(load_label_map(DATASET).classes)
    assert (REPOSITORY / TEACHER).stat().st_size <= LARGEST_TEACHER


def test_experiments_differ_from_the_baseline_in_the_teacher_and_what_it_knows_of_scans_without_labels():
    configs = REPOSITORY / CONFIGS
    baseline = load_settings(ExperimentSettings, configs / "baseline.yaml")
    for name in ("vpd", "lwd", "logit", "full"):
        settings = load_settings(ExperimentSettings, configs / f"{name}.yaml")
        ours, theirs = settings.model_dump(), baseline.model_dump()
        differing = {key for key, value in ours.items() if value != theirs[key]}
        of_validation = {"validate_every"}
        assert differing == {"targets", "augmentation", "distillation", "train", "labels", "epochs"} | of_validation
        assert settings.labels == baseline.train
        assert baseline.epochs == 400 * settings.epochs
    dump = load_settings(DumpSettings, configs / "dump.yaml")
    assert dump.views.count == baseline.augmentation.count
    assert dump.grid == baseline.grid


def test_the_demo_ends_with_a_page_and_a_summary_and_a_second_time_does_nothing_again(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configs = small_configs(tmp_path / "configs")
    folders = DemoFolders(tmp_path / "data", tmp_path / "cache", tmp_path / "runs")
    numbers = run(folders, jobs=2, configs=configs, seeds=(0,))
    assert numbers == json.loads((folders.runs / SUMMARY).read_text())
    assert numbers["gain_miou"] == pytest.approx(numbers["full_miou"] - numbers["baseline_miou"])
    assert 0 <= numbers["baseline_miou"] < numbers["teacher_miou"] <= 100
    page = (folders.runs / PAGE).read_text()
    assert "full" in page
    assert "data:image/png" in page
    assert "WebGL" in (folders.runs / VIEW).read_text()
    weights = {path: path.stat().st_mtime_ns for path in folders.runs.rglob("student_last.pt")}
    assert len(weights) == 2
    again = run(folders, jobs=2, configs=configs, seeds=(0,))
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert again["miou"] == numbers["miou"]


def small_configs(folder: Path) -> Path:
    """The demo's settings for two scans to train on, one to score on, and one step of tiny students."""
    folder.mkdir()
    demo = REPOSITORY / CONFIGS
    streets = "seed: 0\nscans: {'00': 2, '08': 1, '11': 1}\nsensor: {beams: 32, columns: 256}\n"
    (folder / "streets.yaml").write_text(streets)
    (folder / "dump.yaml").write_text(f"extends: {demo / 'dump.yaml'}\n")
    (folder / "full.yaml").write_text(f"extends: {demo / 'full.yaml'}\n{ONE_STEP}")
    baseline = "targets: none\ntrain: ['00']\nlabels: null\nepochs: 2\naugmentation: {count: 1}\n"
    baseline += "distillation: {logit: 0.0, vpd: 0.0, lwd: 0.0}\n"
    (folder / "baseline.yaml").write_text(f"extends: full.yaml\n{baseline}")
    return folder
