"""What is not gone on with: another experiment, other targets, a damaged state, a folder of another run."""

import json
import shutil
from pathlib import Path

import pytest

from common.base.errors import CheckpointError
from common.targets.store import StoreIdentity
from common.training.resuming import check_same_settings, with_later_settings
from stage2_train_student.settings import ExperimentSettings
from tests.shared.reduced import STREET_GRID, fail, reduced_experiment, saved, succeed, train
from tests.shared.resumed_runs import EVERYTHING, RESUME, SLOW, differing


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
