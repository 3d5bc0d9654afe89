"""A training run that stops, dies or is killed goes on as if nothing had happened."""

import json
import os
import signal
import time

import pytest
import torch

from common.training.recorder import read_metrics
from common.training.trainer import Trainer
from stage2_train_student.training.step import StudentStep
from tests.shared.reduced import saved, start, succeed, train, train_words
from tests.shared.resumed_runs import EVERYTHING, RESUME, SLOW, assert_same_run, differing


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


def test_resuming_nothing_starts_from_the_beginning_and_says_so(streets, street_cache, runs):
    output = succeed(train(streets, street_cache, runs / "new", *SLOW, "steps=1", **RESUME))
    assert "nothing to resume" in output
    assert saved(runs / "new")["progress"]["step"] == 1


def test_metrics_hold_one_json_object_a_line(straight_run):
    lines = (straight_run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, 7))
