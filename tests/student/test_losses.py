"""Sparse losses equal dense ones written the long way, in value and gradient; edge cases give zeros, not NaN."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import PillarFeatures, TeacherTargets
from common.training.segmentation_loss import lovasz_softmax, segmentation_terms
from stage2_train_student.distillation.logit import dense_logit_distillation_loss, logit_distillation_loss
from stage2_train_student.distillation.lwd import label_weight_loss, safe_sqrt
from stage2_train_student.distillation.settings import LWD_PAIR, VPD_PAIRS, DistillationSettings
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.distillation.vpd import voxel_to_pillar_loss
from stage2_train_student.students.birds_eye_unet import STUDENT_LAYERS
from stage2_train_student.students.pillar_maps import pillar_rows, pillars_last
from stage2_train_student.students.student import StudentOutputs
from tests.student.test_polarnet import CLASSES, GRID, small_batch

FEATURES = 6
CLASS_WEIGHTS = torch.tensor([9.0, 1.0, 2.0, 30.0, 0.5], dtype=torch.float64)


def unlabelled(batch: ScanBatch) -> ScanBatch:
    """The same batch without labels."""
    return ScanBatch(**{**vars(batch), "voxel_labels": torch.zeros_like(batch.voxel_labels)})


def random_scene(seed: int = 0) -> SimpleNamespace:
    """A batch with random student map, classifier and teacher logits, and everything once more on the dense grid."""
    torch.manual_seed(seed)
    batch = small_batch(seed=seed)
    heights = GRID[2]
    weight = torch.randn(heights * CLASSES, FEATURES, dtype=torch.float64)
    features = torch.randn(batch.scans, FEATURES, *GRID[:2], dtype=torch.float64, requires_grad=True)
    teacher_logits = 3.0 * torch.randn(len(batch.voxels), CLASSES, dtype=torch.float64)

    def pillar_logits(rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, weight).view(-1, heights, CLASSES)

    scan, rho, phi, z = batch.voxels.unbind(1)
    dense_student = pillar_logits(features.permute(0, 2, 3, 1)).view(batch.scans, *GRID, CLASSES)
    dense_teacher = torch.zeros(batch.scans, *GRID, CLASSES, dtype=torch.float64)
    dense_teacher[scan, rho, phi, z] = teacher_logits
    dense_labels = torch.zeros(batch.scans, *GRID, dtype=torch.int64)
    dense_labels[scan, rho, phi, z] = batch.voxel_labels
    logits = pillar_logits(pillars_last(features)[pillar_rows(batch)])[batch.voxel_pillar, z]
    return SimpleNamespace(
        batch=batch,
        features=features,
        pillar_logits=pillar_logits,
        logits=logits,
        teacher_logits=teacher_logits,
        dense_student=dense_student,
        dense_teacher=dense_teacher,
        dense_labels=dense_labels,
    )


def assert_same_value_and_gradient(
    sparse: torch.Tensor, dense: torch.Tensor, inputs: torch.Tensor | list[torch.Tensor]
) -> None:
    torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-12)
    actual = torch.autograd.grad(sparse, inputs, retain_graph=True)
    expected = torch.autograd.grad(dense, inputs, retain_graph=True)
    for gradient, reference in zip(actual, expected, strict=True):
        assert float(reference.abs().max()) > 0
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def lovasz_by_definition(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Lovasz extension of the Jaccard loss of each class present, by growing the set of wrong voxels one by one."""
    losses = []
    for label in labels.unique().tolist():
        truth = labels == label
        errors = torch.where(truth, 1.0 - probabilities[:, label], probabilities[:, label])
        wrong = torch.zeros_like(truth)
        before, loss = 0.0, 0.0
        for voxel in errors.argsort(descending=True).tolist():
            wrong[voxel] = True
            predicted = truth ^ wrong
            jaccard_loss = 1.0 - float((truth & predicted).sum()) / float((truth | predicted).sum())
            loss = loss + errors[voxel] * (jaccard_loss - before)
            before = jaccard_loss
        losses.append(loss)
    return torch.stack(losses).mean()


def test_cross_entropy_equals_the_dense_one():
    scene = random_scene()
    terms = segmentation_terms(scene.logits, scene.batch.voxel_labels, CLASS_WEIGHTS)
    dense = functional.cross_entropy(
        scene.dense_student.permute(0, 4, 1, 2, 3), scene.dense_labels, weight=CLASS_WEIGHTS, ignore_index=0
    )
    assert_same_value_and_gradient(terms["cross_entropy"], dense, scene.features)


def test_lovasz_equals_its_definition_on_the_dense_grid():
    scene = random_scene()
    sparse = segmentation_terms(scene.logits, scene.batch.voxel_labels, CLASS_WEIGHTS)["lovasz"]
    labelled = scene.dense_labels != 0
    probabilities = scene.dense_student.softmax(dim=-1)[labelled]
    dense = lovasz_by_definition(probabilities, scene.dense_labels[labelled])
    assert_same_value_and_gradient(sparse, dense, scene.features)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    labels = torch.tensor([1, 1, 1, 2, 2])
    predicted = torch.tensor([1, 1, 2, 2, 1])
    probabilities = functional.one_hot(predicted, 4).double()
    expected = torch.tensor([1 - 2 / 4, 1 - 1 / 3], dtype=torch.float64).mean()
    torch.testing.assert_close(lovasz_softmax(probabilities, labels), expected, rtol=1e-6, atol=0.0)


def test_segmentation_loss_without_labels_is_a_zero_with_a_gradient():
    logits = torch.randn(7, CLASSES, requires_grad=True)
    loss = sum(segmentation_terms(logits, torch.zeros(7, dtype=torch.int64), CLASS_WEIGHTS.float()).values())
    assert loss == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def logit_loss_by_definition(student: torch.Tensor, teacher: torch.Tensor, threshold: float | None) -> torch.Tensor:
    student, teacher = (0.1 * student).softmax(dim=-1), (0.1 * teacher).softmax(dim=-1)
    entries = (teacher * ((teacher + 1e-6) / (student + 1e-6)).log()).mean(dim=-1).flatten()
    return entries.mean() if threshold is None else entries[entries > threshold].mean()


@pytest.mark.parametrize("threshold", [0.002, None])
def test_logit_term_on_occupied_voxels(threshold):
    scene = random_scene()
    scan, rho, phi, z = scene.batch.voxels.unbind(1)
    dense = logit_loss_by_definition(
        scene.dense_student[scan, rho, phi, z], scene.dense_teacher[scan, rho, phi, z], threshold
    )
    sparse = logit_distillation_loss(scene.logits, scene.teacher_logits, threshold=threshold)
    assert_same_value_and_gradient(sparse, dense, scene.features)


@pytest.mark.parametrize("chunk", [50, 10_000])
@pytest.mark.parametrize("threshold", [0.002, None])
def test_logit_term_on_the_dense_grid(threshold, chunk):
    scene = random_scene()
    dense = logit_loss_by_definition(scene.dense_student, scene.dense_teacher, threshold)
    outputs = StudentOutputs(scene.logits, {}, scene.features, scene.pillar_logits)
    sparse = dense_logit_distillation_loss(outputs, scene.teacher_logits, scene.batch, threshold=threshold, chunk=chunk)
    assert_same_value_and_gradient(sparse, dense, scene.features)


def test_logit_term_without_survivors_is_zero():
    logits = torch.randn(5, CLASSES, requires_grad=True)
    loss = logit_distillation_loss(logits, logits.detach())
    assert loss == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_label_weight_equals_the_dense_formula():
    scene = random_scene()
    adapted = torch.randn_like(scene.features).requires_grad_()
    weight = (CLASS_WEIGHTS / 50.0)[scene.dense_labels] * (scene.dense_labels != 0)
    squared = (adapted - scene.features).square().sum(dim=1)
    dense = ((weight.sum(dim=3) * squared).sum() / (scene.batch.scans * GRID[0] * GRID[1])).sqrt()
    sparse = label_weight_loss(adapted, scene.features, scene.batch, CLASS_WEIGHTS)
    assert_same_value_and_gradient(sparse, dense, [adapted, scene.features])


@pytest.mark.parametrize("case", ["unlabelled", "equal maps"])
def test_label_weight_of_nothing_is_zero_with_a_zero_gradient(case):
    scene = random_scene()
    batch = unlabelled(scene.batch) if case == "unlabelled" else scene.batch
    adapted = scene.features.detach() + (1.0 if case == "unlabelled" else 0.0)
    loss = label_weight_loss(adapted, scene.features, batch, CLASS_WEIGHTS)
    assert loss == 0.0
    (gradient,) = torch.autograd.grad(loss, scene.features)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_safe_sqrt_keeps_not_a_number():
    """A broken loss must stay visible to the training loop."""
    assert safe_sqrt(torch.tensor(4.0)) == 2.0
    assert safe_sqrt(torch.tensor(torch.nan)).isnan()


def test_voxel_to_pillar_is_a_plain_mean_over_the_whole_map():
    adapted, student = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = sum((adapted - student).flatten().square().tolist()) / adapted.numel()
    assert float(voxel_to_pillar_loss(adapted, student)) == pytest.approx(expected, rel=1e-5)


def test_voxel_to_pillar_refuses_maps_of_different_sizes():
    with pytest.raises(SettingsError, match="divide by 8"):
        voxel_to_pillar_loss(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 4))


def random_distillation_inputs() -> tuple[StudentOutputs, TeacherTargets, ScanBatch]:
    """Student outputs that require gradients, and sparse teacher layers of 4 channels."""
    torch.manual_seed(0)
    batch = small_batch()
    strides = {"x2": 2, "x4": 8, "x_up5": 8, "x_up3": 2, "x_up2": 1}
    shapes = {name: (GRID[0] // stride, GRID[1] // stride) for name, stride in strides.items()}
    layers = {
        name: torch.randn(batch.scans, STUDENT_LAYERS[name], *shape, requires_grad=True)
        for name, shape in shapes.items()
    }
    targets = {}
    for teacher, student in [*VPD_PAIRS.items(), LWD_PAIR]:
        pillars = torch.rand(batch.scans, *shapes[student]).gt(0.5).nonzero()
        targets[teacher] = PillarFeatures(pillars, torch.randn(len(pillars), 4), shapes[student])
    linear = torch.nn.Linear(64, GRID[2] * CLASSES)

    def pillar_logits(rows: torch.Tensor) -> torch.Tensor:
        return linear(rows).view(-1, GRID[2], CLASSES)

    rows = pillars_last(layers["x_up2"])[pillar_rows(batch)]
    logits = pillar_logits(rows)[batch.voxel_pillar, batch.voxels[:, 3]]
    outputs = StudentOutputs(logits, layers, layers["x_up2"], pillar_logits)
    teacher_logits = 20.0 * torch.randn(len(batch.voxels), CLASSES)
    return outputs, TeacherTargets(batch.voxels, teacher_logits, targets), batch


TEACHER_CHANNELS = dict.fromkeys([*VPD_PAIRS, LWD_PAIR[0]], 4)


def built(channels: dict[str, int] = TEACHER_CHANNELS, **settings: Any) -> Distillation:
    """The terms that the settings ask for."""
    context = TermContext(DistillationSettings(**settings), channels, STUDENT_LAYERS, CLASS_WEIGHTS.float())
    return Distillation(context)


@pytest.mark.parametrize("support", ["occupied", "dense"])
def test_all_terms_reach_the_student_and_the_adapters(support):
    outputs, targets, batch = random_distillation_inputs()
    distillation = built(support=support)
    terms = distillation(outputs, targets, batch)
    values = {name: term.item() for name, term in terms.items()}
    assert set(terms) == {"logit", "vpd", "lwd", *(f"vpd.{name}" for name in VPD_PAIRS)}
    vpd = sum(values[f"vpd.{name}"] for name in VPD_PAIRS)
    total = distillation.total(terms)
    assert total.item() == pytest.approx(values["logit"] + 2 * vpd + 2 * values["lwd"], rel=1e-5)
    total.backward()
    assert all(float(layer.grad.abs().max()) > 0 for layer in outputs.layers.values())
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in distillation.parameters())
    assert set(distillation.state_dict()) == {
        f"terms.{'lwd' if name == 'up0e' else 'vpd'}.adapters.{name}.{key}"
        for name in TEACHER_CHANNELS
        for key in distillation.terms["lwd"].adapters["up0e"].state_dict()
    }


@pytest.mark.parametrize(
    ("weights", "terms", "adapters"),
    [
        ({"logit": 1.0}, {"logit"}, set()),
        ({"vpd": 2.0, "logit": 0.0}, {"vpd", *(f"vpd.{name}" for name in VPD_PAIRS)}, set(VPD_PAIRS)),
        ({"lwd": 2.0}, {"lwd"}, {LWD_PAIR[0]}),
        ({}, set(), set()),
    ],
)
def test_only_terms_in_use_are_built(weights, terms, adapters):
    outputs, targets, batch = random_distillation_inputs()
    distillation = built(**({"logit": 0, "vpd": 0, "lwd": 0} | weights))
    computed = distillation(outputs, targets, batch)
    assert set(computed) == terms
    assert {layer for term in distillation.terms.values() for layer in getattr(term, "adapters", ())} == adapters
    expected = sum(weight * computed[term].item() for term, weight in weights.items() if weight)
    assert distillation.total(computed).item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_targets_are_accepted():
    outputs, targets, batch = random_distillation_inputs()
    layers = {
        name: PillarFeatures(layer.pillars, layer.features.half(), layer.shape)
        for name, layer in targets.layers.items()
    }
    half = TeacherTargets(targets.voxels, targets.logits.half(), layers)
    distillation = built().eval()
    exact, rounded = distillation(outputs, targets, batch), distillation(outputs, half, batch)
    assert {name: value.item() for name, value in rounded.items()} == pytest.approx(
        {name: value.item() for name, value in exact.items()}, rel=1e-2
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: built(others={"vdp": 1.0}),
            "unknown distillation term 'vdp'; choose from logit, lwd, point_affinity, ",
        ),
        (lambda: built(others={"vpd": 1.0}), "has a setting of its own"),
        (lambda: built(others={"no_such_file:Term": 1.0}), "no_such_file cannot be imported"),
        (lambda: built(others={"os:system": 1.0}), "os has no class system that is a"),
        (lambda: built(others={"common.scans.scan_id:ScanId": 1.0}), "has no class ScanId that is a"),
        (lambda: built(others={"stage2_train_student.distillation.vpd:VoxelToPillar": 1.0}), "same name: logit, vpd"),
        (lambda: built({"down1c": 64}, logit=0, lwd=0), "no teacher layer down3c, up2e, up4e"),
    ],
)
def test_settings_that_cannot_work_are_refused(build: Callable[[], Distillation], message: str):
    with pytest.raises(SettingsError, match=message):
        build()
