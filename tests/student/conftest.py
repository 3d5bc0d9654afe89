"""Runs that many tests of this folder compare others with."""

from pathlib import Path

import pytest
import torch

from tests.shared.reduced import saved, succeed, train
from tests.shared.resumed_runs import EVERYTHING, SLOW, differing


@pytest.fixture(scope="session")
def straight_run(tmp_path_factory, streets, street_cache) -> Path:
    """A run of `SLOW` without any interruption, DropBlock on. Read only."""
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
    return run


@pytest.fixture(scope="session")
def straight_run_of_everything(tmp_path_factory, streets, street_cache) -> Path:
    """A run of `EVERYTHING` without any interruption. Read only."""
    run = tmp_path_factory.mktemp("everything") / "run"
    succeed(train(streets, street_cache, run, *EVERYTHING))
    state = saved(run)
    assert state["progress"]["step"] == 5
    assert differing(state["average"], state["student"]) != []
    assert differing(torch.load(run / "student_last.pt", weights_only=True), state["average"]) == []
    return run
