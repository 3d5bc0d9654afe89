"""What teaches nothing is refused, left out or passed over, and said."""

import numpy as np
import pytest
import torch

from common.scans.dataset import Dataset
from common.training.recorder import read_metrics
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import TargetSource, student_data
from stage2_train_student.training.step import StudentStep
from tests.dump.test_train_teacher import train_teacher
from tests.shared.dataset_writer import street_scan, write_dataset, write_scan
from tests.shared.kitti import list_scans
from tests.shared.reduced import STREET_GRID, fail, one_thread, reduced_experiment, saved, succeed, train
from tests.shared.resumed_runs import differing
from tests.student.test_optimisation import state_of

CPU = torch.device("cpu")
BASELINE = ("batch_size=1", "epochs=1", "validate_on=[]", "student.width=4")


def test_without_a_teacher_and_without_any_label_file_nothing_is_trained(tmp_path, runs):
    write_dataset(tmp_path, {"00": 2}, points=400, unlabelled=("00",))
    message = fail(train(tmp_path, None, runs / "run", *BASELINE, name="baseline"))
    assert "none of the 2 training scans has a label file, the first is 00/000000" in message
    assert not (runs / "run").exists()


def test_without_a_teacher_scans_without_labels_are_left_out_and_counted(tmp_path, runs):
    write_dataset(tmp_path, {"00": 2, "01": 3}, points=400, unlabelled=("01",))
    output = succeed(train(tmp_path, None, runs / "run", *BASELINE, name="baseline"))
    assert "training without 3 of 5 scans, which have no label file" in output
    assert list(saved(runs / "run")["training_scans"]) == ["00"]
    assert all(record["loss"] > 0 for record in read_metrics(runs / "run", "train"))


@pytest.mark.parametrize(("train_on", "count"), [('["11"]', "all 2"), ('["00", "11"]', "2 of 7")])
def test_with_a_teacher_scans_without_labels_are_said(streets, street_cache, runs, train_on, count):
    output = succeed(train(streets, street_cache, runs / "run", f"train={train_on}", "validate_on=[]", "steps=1"))
    assert f"{count} training scans have no label file; the student learns from their targets alone" in output


@pytest.mark.parametrize(("setting", "message"), [("train=[]", "train: "), (f"seed={2**64}", "seed: ")])
def test_settings_that_no_training_can_use_are_refused(streets, street_cache, runs, setting, message):
    assert message in fail(train(streets, street_cache, runs / "run", setting))


def test_labels_that_are_not_there_are_refused(streets, street_cache, runs):
    message = fail(train(streets, street_cache, runs / "run", "train=['00', '11']", "labels=['11']"))
    assert "labels: none of the 2 scans of 11 has a label file" in message


def test_validating_on_training_scans_is_said(streets, runs):
    output = succeed(train(streets, None, runs / "run", *BASELINE, "validate_on=['00', '08']", name="baseline"))
    assert "note: 5 of 6 validation scans are training scans too" in output


# Label files in which nothing is labelled


@pytest.fixture
def half_labelled(tmp_path):
    """Two labelled scans in 00, and two in 01 whose labels say "unlabelled" throughout."""
    write_dataset(tmp_path, {"00": 2, "01": 2}, points=400)
    for scan in list_scans(tmp_path, ["01"]):
        points, _ = street_scan(400)
        write_scan(tmp_path, scan, points, np.zeros(400, np.uint32))
    return tmp_path


def loaded(root, label_map, sequence: str) -> list[StudentBatch]:
    settings = reduced_experiment(STREET_GRID, name="baseline")
    data = student_data(settings, Dataset.open(root, label_map), TargetSource())
    return [data.load_batch([scan], 0) for scan in list_scans(root, [sequence])]


def test_a_step_that_teaches_nothing_changes_nothing(half_labelled, semantic_kitti):
    settings = reduced_experiment(STREET_GRID, "optimiser.weight_decay=0.1", "averaging=0.9", name="baseline")
    state = state_of(settings, semantic_kitti)

    def content():
        parts = state.networks.student.state_dict(), state.networks.average.state_dict(), state.optimiser.state_dict()
        return [{name: value.clone() for name, value in part.items()} for part in parts[:2]] + [repr(parts[2])]

    def step(batches: list[StudentBatch]) -> dict[str, float]:
        with one_thread():
            return StudentStep(state, settings, torch.ones(20))(batches, len(batches), 4)

    step(loaded(half_labelled, semantic_kitti, "00"))
    before = content()
    terms = step(loaded(half_labelled, semantic_kitti, "01"))
    assert differing(content(), before) == []
    assert (terms["loss"], terms["gradient_norm"], state.step) == (0.0, 0.0, 2)


def test_a_batch_that_teaches_nothing_moves_no_statistics_beside_one_that_does(half_labelled, semantic_kitti):
    settings = reduced_experiment(STREET_GRID, name="baseline")
    labelled, unlabelled = (loaded(half_labelled, semantic_kitti, sequence) for sequence in ("00", "01"))
    statistics = []
    for batches in ([labelled[0]], [labelled[0], unlabelled[0]]):
        state = state_of(settings, semantic_kitti)
        with one_thread():
            StudentStep(state, settings, torch.ones(20))(batches, len(batches), 4)
        statistics.append(dict(state.networks.student.named_buffers()))
    assert differing(*statistics) == []


def test_a_step_that_teaches_a_teacher_nothing_changes_nothing(half_labelled, runs):
    options = ("batch_size=1", "epochs=2", "train=['01']", "validate_on=[]")
    output = succeed(train_teacher(half_labelled, runs / "run", *options, "steps=1"))
    assert "nothing to learn from scans 01/00000" in output
    first = saved(runs / "run")
    succeed(train_teacher(half_labelled, runs / "run", *options, options=("--resume",)))
    assert saved(runs / "run")["progress"]["step"] == 4
    assert differing(saved(runs / "run")["teacher"], first["teacher"]) == []
