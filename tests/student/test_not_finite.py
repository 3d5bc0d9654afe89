"""A loss that is not finite stops a run, names the scans, and leaves weights and states to go on from."""

import math

import pytest
import torch

from common.base.errors import TrainingError
from common.scans.dataset import Dataset, epoch_order
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.training.checkpoint import load_checkpoint
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
    succeed,
    train,
)
from tests.shared.resumed_runs import RESUME, SLOW, assert_same_run

CPU = torch.device("cpu")


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
