"""Losses and adapters give the published values on the golden scan, the golden student and the golden teacher."""

import numpy as np
import pytest
import torch

from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.training.segmentation_loss import segmentation_terms
from stage2_train_student.distillation.adapter import Adapter
from stage2_train_student.distillation.logit import dense_logit_distillation_loss, logit_distillation_loss
from stage2_train_student.distillation.lwd import label_weight_loss, pillar_label_weights
from stage2_train_student.distillation.settings import LWD_PAIR, VPD_PAIRS, DistillationSettings
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.distillation.vpd import voxel_to_pillar_loss
from stage2_train_student.students.birds_eye_unet import STUDENT_LAYERS
from stage2_train_student.students.pillar_maps import pillar_rows, pillars_last
from stage2_train_student.students.student import StudentOutputs
from tests.golden.golden_files import (
    golden_arrays,
    golden_batch,
    golden_json,
    golden_weights,
    label_map,
    relative_frobenius,
)
from tests.golden.test_student_golden import golden_student

TOLERANCE = 1e-4
LOGIT_SCALES = {"kl_temp0.1_as_published": 0.1, "kl_temp1": 1.0}
MODES = ["eval", "train"]


@pytest.fixture(scope="module")
def outputs() -> StudentOutputs:
    """The golden student on the golden scan at full size."""
    with torch.no_grad():
        return golden_student("full")(golden_batch("full"))


@pytest.fixture(scope="module")
def teacher_logits() -> torch.Tensor:
    """The golden teacher's logits as stored, float32 [V, classes]."""
    golden = golden_arrays("teacher_full_logits")
    np.testing.assert_array_equal(golden_batch("full").voxels[:, 1:], golden["coords"])
    return torch.from_numpy(golden["logits"])


@pytest.fixture(scope="module")
def class_weights() -> torch.Tensor:
    """The published class weights."""
    return torch.tensor(golden_json()["losses"]["tensor_w"])


@pytest.fixture(scope="module")
def targets(teacher_full_layers: dict[str, PillarFeatures], teacher_logits) -> TeacherTargets:
    """The golden teacher's targets as training sees them, outside inference mode."""
    layers = {
        name: PillarFeatures(layer.pillars.clone(), layer.features.clone(), layer.shape)
        for name, layer in teacher_full_layers.items()
    }
    return TeacherTargets(golden_batch("full").voxels, teacher_logits, layers)


def golden_adapter(name: str, position: int, mode: str) -> Adapter:
    """An adapter with the golden weights of `kd` or `lwd`, in eval or train mode."""
    weights = golden_weights(name, f"{name}.trans_list.{position}.trans_dim.")
    student_channels, teacher_channels = weights["conv.1.weight"].shape[:2]
    adapter = Adapter(teacher_channels, student_channels)
    adapter.load_state_dict(weights, strict=True)
    return adapter.train(mode == "train")


def test_class_weights(class_weights):
    np.testing.assert_allclose(label_map().class_weights(), class_weights, rtol=1e-6)
    np.testing.assert_allclose(label_map().class_shares(), golden_json()["losses"]["class_content"], rtol=1e-6)


def test_segmentation(outputs, class_weights):
    expected = golden_json()["losses"]["seg_f64_from_f32_logits"]
    labels = golden_batch("full").voxel_labels
    terms = segmentation_terms(outputs.voxel_logits, labels, class_weights)
    assert float(terms["lovasz"]) == pytest.approx(expected["lovasz_softmax"], rel=TOLERANCE)
    assert float(terms["cross_entropy"]) == pytest.approx(expected["cross_entropy"], rel=TOLERANCE)
    assert float(sum(terms.values())) == pytest.approx(expected["seg"], rel=TOLERANCE)


@pytest.mark.parametrize("threshold", [0.01, None])
@pytest.mark.parametrize("support", ["occupied", "dense"])
@pytest.mark.parametrize("name", LOGIT_SCALES)
def test_logit_term(outputs, teacher_logits, name, support, threshold):
    expected = golden_json()["losses"][name][support]
    value = expected["unfiltered_mean" if threshold is None else "value"]
    if threshold is not None and expected["survivors"] == 0:
        value = 0.0  # the published mean of nothing is NaN
    scale = LOGIT_SCALES[name]
    if support == "occupied":
        actual = logit_distillation_loss(outputs.voxel_logits, teacher_logits, scale, threshold)
    else:
        with torch.no_grad():
            actual = dense_logit_distillation_loss(outputs, teacher_logits, golden_batch("full"), scale, threshold)
    assert float(actual) == pytest.approx(value, rel=TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("position", range(len(VPD_PAIRS)))
def test_voxel_to_pillar(outputs, targets, position, mode):
    teacher, student = list(VPD_PAIRS.items())[position]
    adapter = golden_adapter("kd", position, mode)
    with torch.no_grad():
        adapted = adapter(targets.layers[teacher].dense(1))
    golden = golden_arrays("kd")
    rows = pillars_last(adapted)
    assert relative_frobenius(rows[golden[f"{mode}.{position}.pix"]], golden[f"{mode}.{position}.feat"]) < TOLERANCE
    assert relative_frobenius(rows.double().mean(dim=0), golden[f"{mode}.{position}.mean"]) < TOLERANCE
    assert relative_frobenius(rows.double().numpy().std(axis=0), golden[f"{mode}.{position}.std"]) < TOLERANCE

    expected = golden_json()["losses"][f"vpd_{mode}"]["terms"][position]
    loss = voxel_to_pillar_loss(adapted, outputs.layers[student])
    assert float(loss) == pytest.approx(expected, rel=TOLERANCE)
    if mode == "train":
        prefix = f"after_train.trans_list.{position}.trans_dim."
        state = adapter.state_dict()
        after = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
        assert len(after) == 4
        for key, value in after.items():
            assert relative_frobenius(state[key], value) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
def test_label_weight(outputs, targets, class_weights, mode):
    teacher, student = LWD_PAIR
    with torch.no_grad():
        adapted = golden_adapter("lwd", 0, mode)(targets.layers[teacher].dense(1))
    golden = golden_arrays("kd")
    assert relative_frobenius(pillars_last(adapted)[golden[f"lwd_{mode}.pix"]], golden[f"lwd_{mode}.feat"]) < TOLERANCE
    expected = golden_json()["losses"][f"lwd_up0e_xup2_{mode}"]["b_occupied_voxels_label_nonzero"]
    loss = label_weight_loss(adapted, outputs.layers[student], golden_batch("full"), class_weights)
    assert float(loss) == pytest.approx(expected, rel=TOLERANCE)


def test_pillar_label_weights_agree_with_the_published_sum_over_height(class_weights):
    """The stored sum counts every voxel, empty and unlabelled ones as class 0; the difference is theirs alone."""
    batch, golden = golden_batch("full"), golden_arrays("kd")
    radial, azimuth, heights = batch.grid_shape
    labelled = torch.zeros(radial * azimuth)
    labelled.index_add_(0, pillar_rows(batch)[batch.voxel_pillar], (batch.voxel_labels != 0).float())
    total = torch.zeros(radial * azimuth)
    total[pillar_rows(batch)] = pillar_label_weights(batch, class_weights)
    total += (heights - labelled) * class_weights[0] / 50.0
    assert relative_frobenius(total[golden["lwd_weight_zsum.pix"]], golden["lwd_weight_zsum"]) < TOLERANCE


def test_distillation_module_gives_the_same_terms(outputs, targets, class_weights):
    channels = {name: layer.features.shape[1] for name, layer in targets.layers.items()}
    distillation = Distillation(TermContext(DistillationSettings(), channels, STUDENT_LAYERS, class_weights))
    for position, teacher in enumerate(VPD_PAIRS):
        distillation.terms["vpd"].adapters[teacher].load_state_dict(golden_adapter("kd", position, "eval").state_dict())
    distillation.terms["lwd"].adapters[LWD_PAIR[0]].load_state_dict(golden_adapter("lwd", 0, "eval").state_dict())
    distillation.eval()
    with torch.no_grad():
        terms = distillation(outputs, targets, golden_batch("full"))
        total = distillation.total(terms)
    losses = golden_json()["losses"]
    vpd = losses["vpd_eval"]
    lwd = losses["lwd_up0e_xup2_eval"]["b_occupied_voxels_label_nonzero"]
    logit = losses["kl_temp0.1_as_published"]["occupied"]["value"]
    assert [float(terms[f"vpd.{name}"]) for name in VPD_PAIRS] == pytest.approx(vpd["terms"], rel=TOLERANCE)
    assert float(terms["vpd"]) == pytest.approx(vpd["sum"], rel=TOLERANCE)
    assert float(terms["lwd"]) == pytest.approx(lwd, rel=TOLERANCE)
    assert float(terms["logit"]) == pytest.approx(logit, rel=TOLERANCE)
    assert float(total) == pytest.approx(logit + 2.0 * vpd["sum"] + 2.0 * lwd, rel=TOLERANCE)
