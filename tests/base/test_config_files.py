"""Configs travel with the program: a name means the same file from every working folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.base.config import load_settings, read_yaml
from common.base.config_files import find_config, lasting
from common.base.errors import SettingsError
from common.scans.label_map import load_label_map
from common.training.resuming import changed_settings, with_later_settings
from stage1_dump_teacher.settings import DumpSettings
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.runs import run_settings
from tests.shared.reduced import CONFIGS, DATASET, REPOSITORY, command, succeed, train

PACKAGED = "configs/datasets/semantic_kitti.yaml"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_packaged_configs_are_found_from_any_folder(elsewhere):
    assert load_settings(DumpSettings, "cylinder3d") == load_settings(
        DumpSettings, CONFIGS / "teachers/cylinder3d.yaml"
    )
    settings = load_settings(ExperimentSettings, "configs/experiments/vpd.yaml", ["dataset=semantic_kitti"])
    assert str(settings.dataset) == PACKAGED
    assert load_label_map(settings.dataset) == load_label_map("semantic_kitti") == load_label_map(DATASET)
    assert find_config("configs/demo") == CONFIGS / "demo"
    known = "baseline, baseline_augmented, full, full_nuscenes, logit, lwd, pvkd, vpd"
    with pytest.raises(SettingsError, match=f"vdp: no such file. Packaged configs: {known}"):
        load_settings(ExperimentSettings, "vdp")


def test_the_working_folder_comes_first_then_the_file_that_names_it_then_the_package(elsewhere, tmp_path):
    beside = write(tmp_path / "mine" / "labels.yaml", DATASET.read_text())
    base = write(tmp_path / "mine" / "base.yaml", "extends: configs/experiments/full.yaml\ndataset: labels.yaml\n")
    experiment = write(tmp_path / "other" / "mine.yaml", f"extends: {base}\nepochs: 3\n")
    settings = load_settings(ExperimentSettings, experiment)
    assert (settings.dataset, settings.epochs) == (beside, 3)
    here = write(elsewhere / "labels.yaml", DATASET.read_text())
    assert load_settings(ExperimentSettings, experiment).dataset == here
    assert str(load_settings(ExperimentSettings, "full").dataset) == PACKAGED
    own = write(elsewhere / PACKAGED, DATASET.read_text())
    assert load_settings(ExperimentSettings, "full").dataset == own
    write(elsewhere / "configs/experiments/full.yaml", f"dataset: {DATASET}\nepochs: 7\n")
    assert load_settings(ExperimentSettings, "full").epochs == 7


def test_a_base_beside_a_file_wins_over_the_working_folder(elsewhere, tmp_path):
    write(tmp_path / "mine" / "base.yaml", "epochs: 1\n")
    write(elsewhere / "base.yaml", "epochs: 2\n")
    assert read_yaml(write(tmp_path / "mine" / "a.yaml", "extends: base.yaml\n")) == {"epochs": 1}


def test_a_file_that_is_nowhere_stays_as_it_was_named(elsewhere):
    assert lasting(Path("nowhere.yaml")) == Path("nowhere.yaml")
    with pytest.raises(SettingsError, match=r"nowhere.yaml: no such file"):
        load_label_map("nowhere.yaml")


def test_a_run_is_read_from_another_folder_than_it_was_trained_in(elsewhere, streets, runs, monkeypatch):
    write(elsewhere / "my.yaml", DATASET.read_text())
    options = ("dataset=my.yaml", "targets=none", "steps=1", "batch_size=1", "validate_on=[]")
    succeed(train(streets, None, runs / "mine", *options, name="baseline"))
    monkeypatch.chdir(elsewhere.parent)
    succeed(command(stage_two, "evaluate", "--data", streets, "--run", runs / "mine", "--device", "cpu"))
    assert json.loads((runs / "mine" / "evaluation_val.json").read_text())["points"] > 0


def test_settings_of_runs_made_before_are_read_and_resumed(elsewhere, tmp_path):
    """They name a packaged dataset, or one relative to the folder that they were trained in."""
    values = read_yaml(CONFIGS / "experiments/full.yaml")
    assert values["dataset"] == PACKAGED
    write(tmp_path / "run/settings.yaml", (CONFIGS / "experiments/full.yaml").read_text())
    current = run_settings(tmp_path / "run").model_dump(mode="json")
    assert current["dataset"] == PACKAGED
    assert changed_settings(current | {"dataset": str(DATASET)}, current, set()) == ["dataset"]
    own = write(elsewhere / "my.yaml", DATASET.read_text())
    now = current | {"dataset": str(own)}
    assert changed_settings(current | {"dataset": "my.yaml"}, now, set()) == []
    assert changed_settings(current | {"dataset": "your.yaml", "epochs": 0}, now, set()) == ["dataset", "epochs"]


def test_an_installed_copy_holds_its_configs_and_works_from_an_empty_folder(elsewhere, tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    parts = ("common", "configs", "stage1_dump_teacher", "stage2_train_student", "polar_distill.py", "pyproject.toml")
    for name in (*parts, "README.md", "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", target, source], check=True)
    kept = {path.relative_to(CONFIGS) for kind in ("yaml", "safetensors") for path in CONFIGS.rglob(f"*.{kind}")}
    assert kept <= {path.relative_to(target / "configs") for path in (target / "configs").rglob("*.*")}
    words = ["simulate", "--out", "data", "--config", "configs/demo/streets.yaml", "--set", "scans={00: 1}"]
    done = subprocess.run(
        [sys.executable, target / "bin/polar-distill", *words],
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 scan in 1 sequence," in done.stdout
    assert (elsewhere / "data/sequences/00/labels/000000.label").is_file()


def test_settings_that_came_later_have_their_defaults_in_older_runs():
    now = load_settings(ExperimentSettings, "full").model_dump(mode="json")
    older = {name: value for name, value in now.items() if name != "teacher"}
    older["distillation"] = {name: value for name, value in now["distillation"].items() if name != "others"}
    assert changed_settings(older, now, set()) == ["teacher", "distillation"]
    assert with_later_settings(ExperimentSettings, older) == now
