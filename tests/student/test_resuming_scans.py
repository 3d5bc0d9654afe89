"""A run goes on with the scans that it was begun with, and with the validation that it did not come to."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from common.scans.formats.semantic_kitti import label_path, scan_path
from common.scans.scan_id import ScanId
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.recorder import read_metrics
from common.training.resuming import set_random_state
from common.training.trainer import Trainer
from tests.dump.test_train_teacher import train_teacher
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import fail, saved, succeed, train
from tests.shared.resumed_runs import assert_same_run, differing

RESUME = {"options": ("--resume",)}
QUICK = ("batch_size=1", "epochs=2")


def train_student(data: Path, run: Path, *overrides: str, **options: Any) -> Result:
    return train(data, None, run, *overrides, "loading_threads=1", "student.width=4", name="baseline", **options)


each_training = pytest.mark.parametrize("training", [train_student, train_teacher], ids=["student", "teacher"])
Training = Callable[..., Result]


@pytest.fixture
def data(tmp_path) -> Path:
    """Four scans to train on, one to validate on."""
    write_dataset(tmp_path / "data", {"00": 2, "01": 2, "08": 1}, points=400)
    return tmp_path / "data"


# Scans


@each_training
@pytest.mark.parametrize("change", ["fewer", "others", "none"])
def test_other_training_scans_are_refused_naming_the_sequence(data, runs, training: Training, change):
    """Two steps are done of an epoch that would have one, or none, with the scans of now."""
    succeed(training(data, runs / "run", *QUICK, "steps=3"))
    before = saved(runs / "run")
    folder = data / "sequences/01"
    if change == "none":
        shutil.rmtree(folder)
    else:
        for path in (scan_path(data, ScanId("01", "000001")), label_path(data, ScanId("01", "000001"))):
            path.rename(path.with_stem("000002") if change == "others" else data / path.name)
    message = fail(training(data, runs / "run", *QUICK, **RESUME))
    now = {"fewer": "1 scans now", "others": "2 scans now, of other names", "none": "none now"}[change]
    assert "cannot resume with other training scans" in message
    assert f"sequence 01: 2 scans in the run, {now}" in message
    assert "sequence 00" not in message
    assert differing(saved(runs / "run"), before) == []


@each_training
def test_a_state_without_scans_goes_on_with_a_note_and_ends(data, runs, training: Training):
    """As states were saved before; with fewer scans than steps were done of the epoch."""
    succeed(training(data, runs / "run", *QUICK, "steps=3", "validate_on=[]"))
    state = saved(runs / "run")
    del state["training_scans"], state["progress"]["validation_due"]
    save_checkpoint(runs / "run/last.pt", state)
    shutil.rmtree(data / "sequences/01")
    output = succeed(training(data, runs / "run", *QUICK, "validate_on=[]", **RESUME))
    assert "does not say which scans the run trained on" in output
    assert saved(runs / "run")["progress"]["step"] == 3 + 2


# Validation


def numbers(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name in ("epoch", "step", "miou")}
        for record in read_metrics(run, "validation")
    ]


@each_training
@pytest.mark.parametrize("recorded", [False, True], ids=["before it is recorded", "after it is recorded"])
def test_a_validation_that_fails_costs_nothing_and_is_made_up_for_once(
    data, runs, training: Training, recorded, monkeypatch
):
    succeed(training(data, runs / "straight", *QUICK))
    validate, epochs = Trainer.validate, []

    def fail_in_the_second_epoch(trainer, *arguments):
        epochs.append(trainer.state.epoch)
        if trainer.state.epoch == 2:
            if recorded:
                validate(trainer, *arguments)
            raise KeyboardInterrupt
        validate(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", fail_in_the_second_epoch)
        assert training(data, runs / "run", *QUICK).exit_code != 0
    progress = saved(runs / "run")["progress"]
    assert epochs == [1, 2]
    assert (progress["epoch"], progress["step"], progress["validation_due"]) == (2, 8, True)
    assert progress["best_miou"] == numbers(runs / "straight")[0]["miou"]

    succeed(training(data, runs / "run", *QUICK, **RESUME))
    assert_same_run(runs / "run", runs / "straight")
    assert numbers(runs / "run") == numbers(runs / "straight")
    for best in (runs / "straight").glob("*_best.*"):
        assert differing(load_checkpoint(runs / "run" / best.name), load_checkpoint(best)) == []


@each_training
def test_a_damaged_validation_scan_leaves_the_epoch(data, runs, training: Training):
    path = scan_path(data, ScanId("08", "000000"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    for _ in range(2):
        assert str(path) in fail(training(data, runs / "run", *QUICK, **RESUME))
        assert saved(runs / "run")["progress"]["step"] == 4
    path.write_bytes(whole)
    succeed(training(data, runs / "run", *QUICK, **RESUME))
    assert [record["epoch"] for record in numbers(runs / "run")] == [1, 2]
    assert [record["step"] for record in read_metrics(runs / "run", "train")] == list(range(1, 9))


# GPUs


@each_training
def test_a_run_of_more_gpus_goes_on_with_a_note(data, runs, training: Training):
    succeed(training(data, runs / "run", *QUICK, "steps=1"))
    state = saved(runs / "run")
    state["random_state"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 8
    save_checkpoint(runs / "run/last.pt", state)
    assert "another number of GPUs than before" in succeed(training(data, runs / "run", *QUICK, "steps=2", **RESUME))
    assert saved(runs / "run")["progress"]["step"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_go_on_where_there_are_fewer_gpus_than_before():
    torch.manual_seed(3)
    state = {"cpu": torch.get_rng_state(), "cuda": [*torch.cuda.get_rng_state_all(), torch.cuda.get_rng_state()]}
    drawn = torch.rand(4), torch.rand(4, device="cuda")
    assert not set_random_state(state)
    assert torch.equal(torch.rand(4), drawn[0])
    assert torch.equal(torch.rand(4, device="cuda"), drawn[1])
    assert set_random_state(state | {"cuda": state["cuda"][:-1]})
