"""Which teacher layer teaches which student layer: a setting, whose default is what was published."""

import pytest
import torch
from torch.nn import functional

from common.base.errors import SettingsError
from common.targets.teacher_targets import PillarFeatures
from common.training.resuming import with_later_settings
from stage2_train_student.distillation.adapter import adapted, same_size
from stage2_train_student.distillation.settings import (
    LWD_PAIR,
    PUBLISHED_PAIRS,
    VPD_PAIRS,
    DistillationSettings,
    LayerPair,
)
from stage2_train_student.distillation.terms import teacher_layers
from stage2_train_student.distillation.vpd import voxel_to_pillar_loss
from stage2_train_student.settings import ExperimentSettings
from tests.shared.reduced import reduced_experiment
from tests.student.test_losses import TEACHER_CHANNELS, built, random_distillation_inputs

PAIR = LayerPair(teacher="fine", student="coarse")


def random_layer(shape: tuple[int, int], channels: int = 3, scans: int = 2) -> PillarFeatures:
    pillars = torch.rand(scans, *shape).gt(0.5).nonzero()
    return PillarFeatures(pillars, torch.randn(len(pillars), channels), shape)


def test_the_default_is_bit_for_bit_what_it_was_before_there_was_a_setting():
    outputs, targets, batch = random_distillation_inputs()
    distillation = built().eval()
    values = distillation(outputs, targets, batch)
    adapters, errors = distillation.terms["vpd"].adapters, []
    for teacher, student in VPD_PAIRS.items():
        errors.append(voxel_to_pillar_loss(adapted(adapters, teacher, targets, batch.scans), outputs.layers[student]))
    assert torch.equal(values["vpd"], torch.stack(errors).sum())
    assert teacher_layers(DistillationSettings()) == [*VPD_PAIRS, LWD_PAIR[0]]


def test_a_list_of_pairs_is_read_from_the_file_and_the_published_one_stands_there():
    assert reduced_experiment((48, 40, 16)).distillation == DistillationSettings(pairs=PUBLISHED_PAIRS)
    own = reduced_experiment(
        (48, 40, 16), "distillation.pairs=[{teacher: up2e, student: x2, weight: 0.5}]"
    ).distillation
    assert own.pairs_of("vpd") == [LayerPair(teacher="up2e", student="x2", weight=0.5)]
    assert [pair.student for pair in own.pairs_of("lwd")] == [LWD_PAIR[1]]
    assert teacher_layers(own) == ["up2e", "up0e"]


def test_runs_from_before_there_was_a_list_go_on():
    now = reduced_experiment((48, 40, 16)).model_dump(mode="json")
    stored = {**now, "distillation": {**now["distillation"]}}
    for name in ("pairs", "supervoxels"):
        del stored["distillation"][name]
    assert with_later_settings(ExperimentSettings, stored) == now


def test_pairs_are_weighted_and_only_they_are_built():
    outputs, targets, batch = random_distillation_inputs()
    pairs = [
        {"teacher": "down1c", "student": "x_up3", "weight": 0.25},
        {"teacher": "up4e", "student": "x4", "weight": 2},
    ]
    distillation = built(logit=0, lwd=0, pairs=pairs)
    values = distillation(outputs, targets, batch)
    assert values.keys() == {"vpd", "vpd.down1c", "vpd.up4e"}
    expected = 0.25 * values["vpd.down1c"].item() + 2 * values["vpd.up4e"].item()
    assert values["vpd"].item() == pytest.approx(expected, rel=1e-6)
    values["vpd"].backward()
    assert {name for name, layer in outputs.layers.items() if layer.grad is not None} == {"x_up3", "x4"}


def test_the_finer_of_two_layers_is_pooled_and_both_still_learn():
    outputs, targets, batch = random_distillation_inputs()
    pairs = [{"teacher": "down1c", "student": "x4"}, {"teacher": "down3c", "student": "x2"}]
    distillation = built(logit=0, lwd=0, pairs=pairs)
    values = distillation(outputs, targets, batch)
    values["vpd"].backward()
    for layer in ("x4", "x2"):
        assert outputs.layers[layer].grad.abs().max() > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in distillation.parameters())


def test_of_a_finer_teacher_each_pillar_keeps_the_maximum_of_its_own():
    torch.manual_seed(0)
    layer, student = random_layer((8, 12)), torch.randn(2, 5, 4, 3)
    pooled, same = same_size(PAIR, layer, student)
    assert same is student
    assert pooled.shape == (4, 3)
    found = {tuple(pillar): values for pillar, values in zip(pooled.pillars.tolist(), pooled.features, strict=True)}
    for scan in range(2):
        for rho in range(4):
            for phi in range(3):
                cells = [
                    values
                    for (own, r, p), values in zip(layer.pillars.tolist(), layer.features, strict=True)
                    if (own, r // 2, p // 4) == (scan, rho, phi)
                ]
                assert ((scan, rho, phi) in found) == bool(cells)
                if cells:
                    assert torch.equal(found[scan, rho, phi], torch.stack(cells).amax(0))


def test_of_a_finer_student_the_mean_is_taken():
    layer, student = random_layer((4, 3)), torch.randn(2, 5, 8, 12)
    same, pooled = same_size(PAIR, layer, student)
    assert same is layer
    torch.testing.assert_close(pooled, functional.avg_pool2d(student, (2, 4)))


@pytest.mark.parametrize("student", [(8, 8), (6, 12), (16, 6), (5, 7)])
def test_layers_that_no_pooling_brings_together_are_refused(student):
    with pytest.raises(SettingsError, match="fine has 8x12 radial and azimuth bins, the student's coarse"):
        same_size(PAIR, random_layer((8, 12)), torch.zeros(2, 5, *student))


def test_label_weights_need_layers_of_the_grids_resolution():
    outputs, targets, batch = random_distillation_inputs()
    pairs = [{"term": "lwd", "teacher": "up0e", "student": "x2"}]
    with pytest.raises(SettingsError, match="lwd weighs the pillars of the grid, up0e and x2 have others"):
        built(logit=0, vpd=0, pairs=pairs)(outputs, targets, batch)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([{"teacher": "down1c", "student": "x9"}], "the student has no layer x9 to distil into .it has: x"),
        ([{"teacher": "down9c", "student": "x2"}], "hold no teacher layer down9c"),
        (
            [{"term": "vdp", "teacher": "down1c", "student": "x2"}],
            "no term 'vdp' is in use; choose from logit, vpd, lwd",
        ),
    ],
)
def test_pairs_of_what_is_not_there_are_refused(pairs, message):
    with pytest.raises(SettingsError, match=message):
        built(TEACHER_CHANNELS, pairs=pairs)
