"""Any teacher that keeps to the protocol serves stage two; one that does not fit the dataset is refused."""

import pytest
import torch

from common.base.errors import SettingsError
from common.targets.teacher import layer_channels
from stage2_train_student.train import Inputs, run
from stage2_train_student.training.experiment import open_targets
from tests.extend.toy_teacher import HeightTeacher
from tests.shared.reduced import STREET_GRID, one_thread, reduced_experiment

CPU = torch.device("cpu")


def test_a_student_learns_from_a_teacher_that_stage_one_does_not_know(streets, runs):
    teacher = HeightTeacher()
    settings = reduced_experiment(
        STREET_GRID, "targets=online", "steps=2", "batch_size=2", "validate_on=[]", name="logit"
    )
    with one_thread():
        state = run(settings, Inputs(streets, teacher=teacher), runs / "height")
    assert (state.step, teacher.asked) == (2, 2)
    assert state.targets_hash == teacher.hash


def test_other_classes_and_unknown_layers_are_refused(semantic_kitti):
    teacher = HeightTeacher(classes=17)
    message = "17 classes, dataset 'semantic_kitti' has 20"
    with pytest.raises(SettingsError, match=message):
        teacher.for_dataset(semantic_kitti)
    with pytest.raises(SettingsError, match=message):
        open_targets(reduced_experiment(STREET_GRID, "targets=online"), semantic_kitti, [], None, teacher)
    with pytest.raises(SettingsError, match="no layer 'up9e'; choose from height"):
        layer_channels(teacher, ["height", "up9e"])
