"""Any teacher that keeps to the protocol serves stage two; one that does not fit the dataset is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher import Teacher, check_classes, layer_channels
from common.targets.teacher_targets import TeacherTargets
from stage2_train_student.train import run
from stage2_train_student.training.experiment import open_targets
from tests.shared.reduced import STREET_GRID, one_thread, reduced_experiment

CPU = torch.device("cpu")


@dataclass
class HeightTeacher:
    """A teacher without weights: the higher a voxel, the higher its class."""

    hash: str = "f" * 64
    classes: int = 20
    channels: dict[str, int] = field(default_factory=lambda: {"up0e": 4})
    asked: int = 0

    def targets(self, batch: ScanBatch, layers: Sequence[str]) -> TeacherTargets:
        assert not layers
        self.asked += 1
        classes = (batch.voxels[:, 3] * self.classes).div(batch.grid_shape[2], rounding_mode="floor")
        return TeacherTargets(batch.voxels, 5.0 * torch.nn.functional.one_hot(classes, self.classes).float(), {})


def test_a_student_learns_from_a_teacher_that_stage_one_does_not_know(streets, runs):
    teacher = HeightTeacher()
    settings = reduced_experiment(
        STREET_GRID, "targets=online", "steps=2", "batch_size=2", "validate_on=[]", name="logit"
    )
    with one_thread():
        state = run(settings, streets, runs / "height", CPU, teacher=teacher)
    assert (state.step, teacher.asked) == (2, 2)
    assert state.targets_hash == teacher.hash


def test_other_classes_and_unknown_layers_are_refused(semantic_kitti):
    teacher: Teacher = HeightTeacher(classes=17)
    message = "17 classes, dataset 'semantic_kitti' has 20"
    with pytest.raises(SettingsError, match=message):
        check_classes(teacher, semantic_kitti)
    with pytest.raises(SettingsError, match=message):
        open_targets(reduced_experiment(STREET_GRID, "targets=online"), semantic_kitti, [], None, teacher)
    with pytest.raises(SettingsError, match="no layer 'up9e'; choose from up0e"):
        layer_channels(teacher, ["up0e", "up9e"])
