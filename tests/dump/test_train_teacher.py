"""Training a teacher through its command: what it writes loads as a teacher, and no run is lost or mixed up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from common.base.config import load_settings
from common.scans.dataset import Dataset, voxelise_view
from common.scans.formats.semantic_kitti import label_path
from common.scans.label_map import load_label_map
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY
from common.training.recorder import read_metrics
from common.training.resuming import scans_of_sequences
from stage1_dump_teacher.__main__ import main as stage_one
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings
from stage1_dump_teacher.teacher_training.train import BEST_TEACHER, LAST_TEACHER, TeacherTask, new_state
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from tests.shared.dataset_writer import write_dataset
from tests.shared.kitti import list_scans
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, command, dump, fail, saved, settings_words, succeed

CPU = torch.device("cpu")
CONFIG = CONFIGS / "teachers/train_cylinder3d.yaml"
SMALL = (
    f"dataset={DATASET}",
    f"grid.shape={list(STREET_GRID)}",
    "widths={base: 4, point_channels: 16, voxel_channels: 8}",
    "epochs=2",
)
LAST_STEP = 6
"""Five scans, two a step, two epochs."""


def train_teacher(data: Path, run: Path, *overrides: str, options: tuple[Any, ...] = ()) -> Result:
    words = ("train-teacher", "--data", data, "--run", run, "--config", CONFIG, "--device", "cpu", *options)
    return command(stage_one, *words, *settings_words(*SMALL, *overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, streets) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    succeed(train_teacher(streets, run))
    return run


def batch_of(data: Path) -> ScanBatch:
    settings = load_settings(TeacherTrainingSettings, CONFIG, SMALL)
    label_map, grid = load_label_map(settings.dataset), settings.grid.grid()
    source = Dataset.open(data, label_map).read(ScanId("08", "000000"))
    return batch_scans([voxelise_view(source, IDENTITY, grid, label_map)], grid.shape)


def test_the_checkpoint_is_the_trained_teacher(trained, streets):
    settings = load_settings(TeacherTrainingSettings, CONFIG, SMALL)
    state = new_state(settings, load_label_map(settings.dataset), CPU)
    state.training_scans = scans_of_sequences(list_scans(streets, ["00"]))
    state.restore(trained, settings, set())
    loaded = load_teacher(trained / LAST_TEACHER, CPU).model
    batch = batch_of(streets)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, state.networks.teacher.eval()(batch).logits)


def test_the_checkpoint_can_be_dumped(trained, streets, tmp_path):
    assert "5 scan-views written" in succeed(
        dump(streets, trained / BEST_TEACHER, tmp_path / "cache", STREET_GRID, "splits=[train]")
    )


def test_every_step_and_validation_is_recorded_and_the_loss_falls(streets, tmp_path):
    succeed(
        train_teacher(streets, tmp_path / "run", "epochs=8", "validate_every=4", "batch_size=5", "learning_rate=1e-2")
    )
    steps = read_metrics(tmp_path / "run", "train")
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert [record["epoch"] for record in read_metrics(tmp_path / "run", "validation")] == [4, 8]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(trained, streets, tmp_path):
    run = tmp_path / "run"
    succeed(train_teacher(streets, run, "steps=2"))
    assert saved(run)["progress"]["step"] == 2
    succeed(train_teacher(streets, run, options=("--resume",)))
    whole, resumed = saved(trained), saved(run)
    assert resumed["progress"] == whole["progress"]
    assert resumed["progress"]["step"] == LAST_STEP
    assert all(torch.equal(resumed["teacher"][name], value) for name, value in whole["teacher"].items())
    assert (run / LAST_TEACHER).read_bytes() == (trained / LAST_TEACHER).read_bytes()


def test_float16_halves_the_checkpoint_and_changes_little(trained, streets, tmp_path):
    run = tmp_path / "run"
    succeed(train_teacher(streets, run, "checkpoint_dtype=float16"))
    small, whole = run / LAST_TEACHER, trained / LAST_TEACHER
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    batch = batch_of(streets)
    with torch.no_grad():
        halved, exact = (load_teacher(path, CPU).model(batch).logits for path in (small, whole))
    assert 0 < float((halved - exact).norm()) < 0.02 * float(exact.norm())


def test_a_run_is_not_overwritten(trained, streets):
    assert "holds a run already" in fail(train_teacher(streets, trained))


def test_a_run_is_not_resumed_with_other_settings(trained, streets):
    message = fail(train_teacher(streets, trained, "learning_rate=0.5", options=("--resume",)))
    assert "learning_rate: 0.001 in the run, 0.5 now" in message


def test_a_damaged_state_is_refused(trained, streets, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:1000])
    assert "damaged" in fail(train_teacher(streets, run, options=("--resume",)))


def test_scans_without_labels_cannot_train_a_teacher(tmp_path):
    write_dataset(tmp_path / "data", {"00": 2, "01": 2}, unlabelled=("01",))
    message = fail(train_teacher(tmp_path / "data", tmp_path / "run"))
    assert "2 of 4 scans have no labels, the first is 01/000000" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rate", [".inf", "-.inf", ".nan", "0", "-0.001"])
def test_a_learning_rate_that_is_none_is_refused(streets, tmp_path, rate):
    assert "learning_rate: must be" in fail(train_teacher(streets, tmp_path / "run", f"learning_rate={rate}"))
    assert not (tmp_path / "run").exists()


def test_fresh_views_are_drawn_by_the_seed_of_the_run(streets):
    clouds = []
    for seed in (0, 0, 1, 2):
        settings = load_settings(TeacherTrainingSettings, CONFIG, (*SMALL, f"seed={seed}"))
        dataset = Dataset.open(streets, load_label_map(settings.dataset))
        task = TeacherTask(settings, new_state(settings, dataset.label_map, CPU), dataset, [], [], CPU)
        [batch] = task.load([[ScanId("00", "000001")]], epoch=0)
        clouds.append(batch.point_features)
    assert torch.equal(clouds[0], clouds[1])
    assert len({cloud.numpy().tobytes() for cloud in clouds}) == 3


def test_a_loss_that_is_not_finite_stops_and_names_the_scans(streets, tmp_path):
    # Weights of 1e30 square to infinity in the first batch norm.
    message = fail(train_teacher(streets, tmp_path / "run", "learning_rate=1e30", "validate_on=[]"))
    assert "the loss is nan for scans 00/" in message


def test_without_validation_the_last_teacher_is_named(streets, tmp_path):
    write_dataset(tmp_path / "data", {"00": 2})
    assert label_path(tmp_path / "data", ScanId("00", "000000")).is_file()
    output = succeed(train_teacher(tmp_path / "data", tmp_path / "run", "epochs=1"))
    assert "no validation" in output
    assert f"--teacher {tmp_path / 'run' / LAST_TEACHER}" in output
    assert not (tmp_path / "run" / BEST_TEACHER).exists()
