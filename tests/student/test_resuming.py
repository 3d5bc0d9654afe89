"""A training run that stops, dies or is killed goes on as if nothing had happened."""

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.base.errors import CheckpointError, TrainingError
from common.scans.dataset import Dataset, epoch_order
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.store import StoreIdentity, TargetStore
from common.training.checkpoint import load_checkpoint
from common.training.recorder import read_metrics
from common.training.resuming import check_same_settings, with_later_settings
from common.training.trainer import Trainer
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training import step as step_module
from stage2_train_student.training.data import choose_view
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.step import StudentStep
from tests.shared.reduced import (
    FULL_LAYERS,
    NARROW,
    STREET_GRID,
    fail,
    one_thread,
    reduced_experiment,
    saved,
    start,
    succeed,
    train,
    train_words,
)

CPU = torch.device("cpu")
SLOW = ("batch_size=1", "epochs=2", "steps=6", "validate_on=[]", "loading_threads=1")
"""Six steps over five scans: one epoch and the first step of the next."""

EVERYTHING = (
    *SLOW,
    "optimiser.accumulate=2",
    "optimiser.clip_norm=1.0",
    "optimiser.schedule.kind=cosine",
    "optimiser.schedule.warm_up=2",
    "averaging=0.9",
    "precision=bfloat16",
    "steps=5",
)
"""Every setting that changes a step, at once; the three steps of an epoch take two, two and one batches."""

RESUME = {"options": ("--resume",)}


def differing(left: Any, right: Any, name: str = "") -> list[str]:
    """Names of the entries of two nested states that are not equal bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), name
        return [line for key in left for line in differing(left[key], right[key], f"{name}.{key}")]
    if isinstance(left, list):
        assert len(left) == len(right), name
        return [
            line for row, pair in enumerate(zip(left, right, strict=True)) for line in differing(*pair, f"{name}.{row}")
        ]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return [] if same else [name]


def assert_same_run(run: Path, straight: Path) -> None:
    """Equal states but for settings that may change, and equal numbers recorded at every step."""
    left, right = saved(run), saved(straight)
    left.pop("settings"), right.pop("settings")
    assert differing(left, right) == []
    clocks = ("seconds", "waited")
    records = [
        [{key: value for key, value in line.items() if key not in clocks} for line in read_metrics(folder, "train")]
        for folder in (run, straight)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory, streets, street_cache):
    """A run of `SLOW` without any interruption, DropBlock on."""
    run = tmp_path_factory.mktemp("straight") / "run"
    succeed(train(streets, street_cache, run, *SLOW))
    assert saved(run)["progress"] == {
        "epoch": 1,
        "step_in_epoch": 1,
        "step": 6,
        "best_miou": -1.0,
        "validations_since_best": 0,
        "validation_due": False,
    }
    yield run
    shutil.rmtree(run)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_run_in_two_parts_is_bit_for_bit_the_run_in_one(streets, street_cache, runs, straight_run, steps):
    """Stopped in the middle of an epoch, and at its end."""
    run = runs / "parts"
    succeed(train(streets, street_cache, run, *SLOW, f"steps={steps}"))
    assert saved(run)["progress"]["step"] == steps
    assert differing(saved(run)["student"], saved(straight_run)["student"]) != []
    assert f"after step {steps}" in succeed(train(streets, street_cache, run, *SLOW, **RESUME))
    assert_same_run(run, straight_run)


def test_other_random_numbers_between_the_parts_do_not_matter(streets, street_cache, runs, straight_run):
    run = runs / "parts"
    succeed(train(streets, street_cache, run, *SLOW, "steps=4", "save_every=2"))
    torch.manual_seed(12345)
    succeed(train(streets, street_cache, run, *SLOW, "loading_threads=3", "save_every=1", **RESUME))
    assert_same_run(run, straight_run)


def test_dropblock_does_depend_on_chance(streets, street_cache, runs, straight_run):
    """So that the tests of resuming would notice a random state that was not restored."""
    succeed(train(streets, street_cache, runs / "seed", *SLOW, "steps=1", "student.dropblock=0.4"))
    one, other = read_metrics(runs / "seed", "train")[0], read_metrics(straight_run, "train")[0]
    assert one["cross_entropy"] != other["cross_entropy"]


def test_sigterm_stops_after_the_step_and_loses_nothing(streets, street_cache, runs, straight_run, monkeypatch):
    def step_then_signal(one_step, *arguments):
        terms = take_step(one_step, *arguments)
        if one_step.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    run, take_step = runs / "stopped", StudentStep.launch
    previous = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(StudentStep, "launch", step_then_signal)
        assert "SIGTERM: stopping after this step" in succeed(train(streets, street_cache, run, *SLOW))
    assert signal.getsignal(signal.SIGTERM) is previous
    assert saved(run)["progress"]["step"] == 3
    succeed(train(streets, street_cache, run, *SLOW, **RESUME))
    assert_same_run(run, straight_run)


def test_a_killed_run_goes_on_from_its_last_save(streets, street_cache, runs, straight_run):
    run = runs / "killed"
    process = start("-m", "stage2_train_student", *train_words(streets, street_cache, run, *SLOW, "save_every=1"))
    deadline = time.monotonic() + 120
    while not (run / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert 1 <= saved(run)["progress"]["step"] < 6
    succeed(train(streets, street_cache, run, *SLOW, "save_every=1", **RESUME))
    assert_same_run(run, straight_run)


@pytest.fixture(scope="module")
def straight_run_of_everything(tmp_path_factory, streets, street_cache):
    """A run of `EVERYTHING` without any interruption."""
    run = tmp_path_factory.mktemp("everything") / "run"
    succeed(train(streets, street_cache, run, *EVERYTHING))
    state = saved(run)
    assert state["progress"]["step"] == 5
    assert differing(state["average"], state["student"]) != []
    assert differing(torch.load(run / "student_last.pt", weights_only=True), state["average"]) == []
    yield run
    shutil.rmtree(run)


def test_a_stop_inside_an_accumulation_group_takes_effect_after_it(
    streets, street_cache, runs, straight_run_of_everything, monkeypatch
):
    """At the first batch of the second step."""
    accumulate_gradients = StudentStep.accumulate_gradients
    calls = []

    def signal_then_accumulate(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate_gradients(*arguments)

    run = runs / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(StudentStep, "accumulate_gradients", signal_then_accumulate)
        succeed(train(streets, street_cache, run, *EVERYTHING))
    assert len(calls) == 4
    assert saved(run)["progress"]["step"] == 2
    succeed(train(streets, street_cache, run, *EVERYTHING, **RESUME))
    assert_same_run(run, straight_run_of_everything)


def test_a_validation_whose_epoch_was_not_saved_is_recorded_once(streets, street_cache, runs, monkeypatch):
    """Killed between the validation and the save after it; the last step itself was saved."""
    validate = Trainer.validate

    def validate_then_die(*arguments):
        validate(*arguments)
        raise KeyboardInterrupt

    run, options = runs / "died", ("batch_size=5", "epochs=2", "save_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", validate_then_die)
        assert train(streets, street_cache, run, *options).exit_code != 0
    assert saved(run)["progress"]["step"] == len(read_metrics(run, "validation")) == 1
    succeed(train(streets, street_cache, run, *options, **RESUME))
    assert [(line["step"], line["epoch"]) for line in read_metrics(run, "validation")] == [(1, 1), (2, 2)]
    assert [(line["step"], line["epoch"]) for line in read_metrics(run, "train")] == [(1, 0), (2, 1)]


def test_a_run_that_dies_inside_an_accumulation_group_goes_on_from_the_step_before(
    streets, street_cache, runs, straight_run_of_everything, monkeypatch
):
    """At the second batch of the second step of the second epoch."""
    accumulate_gradients = StudentStep.accumulate_gradients
    calls = []

    def die_or_accumulate(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return accumulate_gradients(*arguments)

    run = runs / "died"
    with monkeypatch.context() as patch:
        patch.setattr(StudentStep, "accumulate_gradients", die_or_accumulate)
        assert train(streets, street_cache, run, *EVERYTHING, "save_every=1").exit_code != 0
    assert saved(run)["progress"]["step"] == 4
    succeed(train(streets, street_cache, run, *EVERYTHING, "save_every=1", **RESUME))
    assert_same_run(run, straight_run_of_everything)


def test_a_falling_schedule_keeps_its_number_of_epochs(streets, street_cache, straight_run_of_everything):
    message = fail(train(streets, street_cache, straight_run_of_everything, *EVERYTHING, "epochs=3", **RESUME))
    assert "epochs: 2 in the run, 3 now" in message


def test_a_run_is_not_overwritten(streets, street_cache, straight_run):
    before = saved(straight_run)
    message = fail(train(streets, street_cache, straight_run, *SLOW))
    assert "holds a run already" in message
    assert "--resume" in message
    assert differing(saved(straight_run), before) == []


@pytest.mark.parametrize("words", [{}, RESUME])
def test_the_best_student_of_an_earlier_run_is_not_taken_for_the_new_ones(streets, runs, words):
    """The new run does not validate, so evaluate would find the old student."""
    run = runs / "reused"
    succeed(train(streets, None, run, "steps=1", "batch_size=5", name="baseline"))
    (run / "last.pt").unlink()
    before = (run / "student_best.pt").read_bytes()
    message = fail(train(streets, None, run, "steps=1", "batch_size=5", "validate_on=[]", name="baseline", **words))
    assert f"{run}: holds student_best.pt, student_last.pt of an earlier run" in message
    assert (run / "student_best.pt").read_bytes() == before


def test_resuming_another_experiment_is_refused_naming_each_setting(streets, street_cache, straight_run):
    changes = ("optimiser.learning_rate=1e-3", "seed=1", "student.dropblock=0")
    message = fail(train(streets, street_cache, straight_run, *SLOW, *changes, **RESUME))
    assert "cannot resume with other settings" in message
    for name in ("optimiser:", "seed: 0 in the run, 1 now", "student:"):
        assert name in message


@pytest.mark.parametrize(("dropblock", "dropout"), [(0.0, 0.5), (0.5, 0.0)])
def test_a_run_from_before_there_was_a_setting_is_held_against_what_it_did_then(dropblock, dropout):
    """Without DropBlock it trained with a dropout of 0.5 that no setting showed."""
    now = reduced_experiment(STREET_GRID, f"student.dropblock={dropblock}", f"student.dropout={dropout}")
    stored = now.model_dump(mode="json")
    for name in ("dropout", "network", "options"):
        del stored["student"][name]
    known = with_later_settings(ExperimentSettings, stored)
    assert known == now.model_dump(mode="json")
    other = reduced_experiment(STREET_GRID, f"student.dropblock={dropblock}", "student.dropout=0.1")
    with pytest.raises(CheckpointError, match=rf"'dropout': {dropout}.* in the run, .*'dropout': 0.1.* now"):
        check_same_settings(Path("last.pt"), known, other.model_dump(mode="json"), set())


def test_resuming_with_targets_of_another_store_is_refused(streets, street_cache, straight_run, tmp_path):
    shutil.copytree(street_cache, tmp_path / "other")
    manifest = tmp_path / "other/manifest.json"
    content = json.loads(manifest.read_text())
    identity = StoreIdentity.model_validate(content["identity"]).model_copy(update={"teacher_hash": "b" * 64})
    changed = {"identity": identity.model_dump(mode="json"), "identity_hash": identity.hash}
    manifest.write_text(json.dumps(content | changed))
    message = fail(train(streets, tmp_path / "other", straight_run, *SLOW, **RESUME))
    assert "cannot resume with targets of another store or teacher" in message
    assert identity.hash[:12] in message


def test_a_damaged_state_is_refused_naming_the_file(streets, street_cache, runs):
    run = runs / "damaged"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(b"PK\x03\x04 not all of it")
    assert str(run / "last.pt") in fail(train(streets, street_cache, run, *SLOW, **RESUME))


def test_a_state_with_one_flipped_bit_is_refused_naming_the_file(streets, street_cache, straight_run, runs):
    shutil.copytree(straight_run, runs / "flipped")
    path = runs / "flipped/last.pt"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    said = fail(train(streets, street_cache, runs / "flipped", *SLOW, **RESUME))
    assert f"{path}: damaged" in said
    assert "its bytes do not match the hash" in said


def test_resuming_nothing_starts_from_the_beginning_and_says_so(streets, street_cache, runs):
    output = succeed(train(streets, street_cache, runs / "new", *SLOW, "steps=1", **RESUME))
    assert "nothing to resume" in output
    assert saved(runs / "new")["progress"]["step"] == 1


# A loss that is not finite


def nan_at(step: int):
    """The project's losses, with NaN at one step."""
    calls = []
    losses = step_module.losses

    def spoilt(*arguments):
        calls.append(1)
        loss, terms = losses(*arguments)
        return (loss * float("nan") if len(calls) == step else loss), terms

    return spoilt


def test_a_loss_that_is_not_finite_stops_naming_the_scans_and_the_run_goes_on(
    streets, street_cache, runs, straight_run, monkeypatch
):
    run = runs / "nan"
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "losses", nan_at(4))
        message = fail(train(streets, street_cache, run, *SLOW, "save_every=1"))
    scans = Dataset.open(streets, load_label_map(reduced_experiment(STREET_GRID).dataset)).select(["train"]).scans
    [guilty] = epoch_order(scans, 1, 0, 0)[3]
    assert f"step 4: the loss is nan for scans {guilty}" in message
    kept = load_checkpoint(run / "non_finite_batch_4.pt")
    assert (kept["step"], kept["epoch"], kept["scans"]) == (4, 0, [str(guilty)])
    assert f"anchor={choose_view(2, 0, guilty, 0)}" in kept["views"][0]
    assert kept["targets_hash"] == TargetStore.open(street_cache).identity.hash
    assert math.isnan(kept["terms"]["loss"])
    assert math.isfinite(kept["terms"]["cross_entropy"])
    assert kept["batch"]["point_features"].shape[1] == 9
    assert saved(run)["progress"]["step"] == 3
    succeed(train(streets, street_cache, run, *SLOW, "save_every=1", **RESUME))
    assert_same_run(run, straight_run)


def test_a_loss_that_is_not_finite_leaves_the_weights(streets, street_cache, semantic_kitti, monkeypatch):
    settings = reduced_experiment(STREET_GRID, NARROW)
    store = TargetStore.open(street_cache)
    state = new_state(settings, semantic_kitti, TargetSource(channels=FULL_LAYERS), CPU)
    before = {name: value.clone() for name, value in state.networks.student.named_parameters()}
    batch = student_data(settings, Dataset.open(streets, semantic_kitti), TargetSource(store)).load_batch(
        [ScanId("00", "000000")], 0
    )
    monkeypatch.setattr(step_module, "losses", nan_at(1))
    with one_thread(), pytest.raises(TrainingError, match="00/000000"):
        StudentStep(state, settings, torch.ones(20))([batch])
    assert all(torch.equal(value, before[name]) for name, value in state.networks.student.named_parameters())


def test_metrics_hold_one_json_object_a_line(straight_run):
    lines = (straight_run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, 7))
