"""Weights by the teacher's confidence and by labels, held against plain loops in float64."""

import math
from dataclasses import replace

import pytest
import torch

from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from stage2_train_student.distillation.adapter import compared
from stage2_train_student.distillation.logit import divergence
from stage2_train_student.distillation.settings import VPD_PAIRS, DistillationSettings
from stage2_train_student.distillation.weights import cell_weights, voxel_weights
from stage2_train_student.students.student import StudentOutputs
from tests.student.test_losses import (
    CLASS_WEIGHTS,
    LWD_PAIR,
    built,
    random_distillation_inputs,
    unlabelled,
)
from tests.student.test_polarnet import GRID

KINDS = [{"confidence": True}, {"trust_labels": True}, {"confidence": True, "trust_labels": True}]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "+".join(kind))


def inputs() -> tuple[StudentOutputs, TeacherTargets, ScanBatch]:
    """Random ones, in which the teacher answers some labelled voxels rightly, and one voxel in five has no label."""
    outputs, targets, batch = random_distillation_inputs()
    labels = 1 + targets.logits[:, 1:].argmax(dim=1)
    labels[::3] = 1 + labels[::3] % (targets.logits.shape[1] - 1)
    labels[::5] = 0
    return outputs, replace(targets, logits=targets.logits / 10), replace(batch, voxel_labels=labels)


def raw_by_hand(kind: dict[str, bool], targets: TeacherTargets, batch: ScanBatch) -> list[float]:
    """w of each voxel, one after another."""
    weights = []
    for logits, label in zip(targets.logits.double().tolist(), batch.voxel_labels.tolist(), strict=True):
        exponentials = [math.exp(value) for value in logits[1:]]
        largest = max(exponentials)
        weight = largest / sum(exponentials) if kind.get("confidence") else 1.0
        if kind.get("trust_labels") and label != 0 and 1 + exponentials.index(largest) != label:
            weight = 0.0
        weights.append(weight)
    return weights


def voxels_by_hand(kind: dict[str, bool], targets: TeacherTargets, batch: ScanBatch) -> list[float]:
    raw = raw_by_hand(kind, targets, batch)
    return [weight * len(raw) / sum(raw) for weight in raw]


def cells_by_hand(
    kind: dict[str, bool], targets: TeacherTargets, batch: ScanBatch, shape: tuple[int, int]
) -> torch.Tensor:
    """Weights of a map, float64 [B, R, P], cell after cell."""
    found: dict[tuple[int, ...], list[float]] = {}
    strides = (GRID[0] // shape[0], GRID[1] // shape[1])
    for weight, (scan, rho, phi, _) in zip(raw_by_hand(kind, targets, batch), batch.voxels.tolist(), strict=True):
        found.setdefault((scan, rho // strides[0], phi // strides[1]), []).append(weight)
    means = {cell: sum(weights) / len(weights) for cell, weights in found.items()}
    out = torch.ones(batch.scans, *shape, dtype=torch.float64)
    for cell, weight in means.items():
        out[cell] = weight * len(means) / sum(means.values())
    return out


@kinds
def test_weights_are_those_of_the_plain_loops(kind):
    _, targets, batch = inputs()
    settings = DistillationSettings(**kind)
    found = voxel_weights(settings, targets, batch)
    expected = torch.tensor(voxels_by_hand(kind, targets, batch), dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert float(found.mean()) == pytest.approx(1.0, rel=1e-5)
    assert len(found.unique()) > 1
    for layer in targets.layers.values():
        cells = cell_weights(settings, targets, batch, layer.shape)
        assert cells.shape == (batch.scans, 1, *layer.shape)
        by_hand = cells_by_hand(kind, targets, batch, layer.shape)
        torch.testing.assert_close(cells[:, 0].double(), by_hand, rtol=1e-6, atol=1e-6)
        assert float(cells.mean()) == pytest.approx(1.0, rel=1e-5)
    assert voxel_weights(DistillationSettings(), targets, batch) is None
    assert cell_weights(DistillationSettings(), targets, batch, GRID[:2]) is None


@kinds
@pytest.mark.parametrize("support", ["occupied", "dense"])
def test_the_logit_term_is_a_weighted_mean(kind, support):
    outputs, targets, batch = inputs()
    term = built(vpd=0, lwd=0, support=support, logit_threshold=1e-4, **kind).terms["logit"]
    entries = divergence(outputs.voxel_logits.double(), targets.logits.double(), 0.1).tolist()
    counted = [pair for pair in zip(entries, voxels_by_hand(kind, targets, batch), strict=True) if pair[0] > 1e-4]
    assert 0 < len(counted) < len(entries)
    if support == "dense":
        occupied = {tuple(bins) for bins in batch.voxels.tolist()}
        rows = outputs.layers["x_up2"].permute(0, 2, 3, 1).reshape(-1, outputs.layers["x_up2"].shape[1])
        everywhere = outputs.pillar_logits(rows).view(batch.scans, *GRID, -1).double()
        uniform = torch.zeros(everywhere.shape[-1], dtype=torch.float64)
        places = torch.ones(batch.scans, *GRID).nonzero().tolist()
        of_all = divergence(everywhere, uniform, 0.1).flatten().tolist()
        for place, entry in zip(places, of_all, strict=True):
            if tuple(place) not in occupied and entry > 1e-4:
                counted.append((entry, 1.0))
    expected = sum(entry * weight for entry, weight in counted) / sum(weight for _, weight in counted)
    assert term(outputs, targets, batch)["logit"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("confidence", [False, True])
def test_the_logit_term_is_weighted_by_the_classes_that_the_teacher_sees(confidence):
    outputs, targets, batch = inputs()
    weights = voxels_by_hand({"confidence": confidence}, targets, batch)
    expected = []
    for logits in targets.logits.double().tolist():
        exponentials = [math.exp(value) for value in logits[1:]]
        seen = sum(value * float(weight) for value, weight in zip(exponentials, CLASS_WEIGHTS[1:], strict=True))
        expected.append(seen / sum(exponentials))
    combined = [one * other for one, other in zip(weights, expected, strict=True)]
    entries = divergence(outputs.voxel_logits.double(), targets.logits.double(), 0.1).tolist()
    mean = sum(entry * weight for entry, weight in zip(entries, combined, strict=True)) / sum(combined)
    settings = {"logit_class_weights": True, "logit_threshold": None, "confidence": confidence}
    found = built(vpd=0, lwd=0, **settings).terms["logit"](outputs, targets, batch)["logit"]
    assert found.item() == pytest.approx(mean, rel=1e-4)
    assert max(expected) > 2 * min(expected)


@kinds
def test_the_feature_terms_are_weighted_means(kind):
    outputs, targets, batch = inputs()
    distillation = built(**kind)
    with torch.no_grad():
        found = distillation(outputs, targets, batch)
    for teacher, student in [*VPD_PAIRS.items(), LWD_PAIR]:
        term = distillation.terms["lwd" if (teacher, student) == LWD_PAIR else "vpd"]
        layer = targets.layers[teacher]
        adapted = term.adapters[teacher](layer.dense(batch.scans)).double()
        squared = (adapted - outputs.layers[student].double()).square().detach()
        weights = cells_by_hand(kind, targets, batch, layer.shape)
        if term.name == "vpd":
            expected = float((weights[:, None] * squared).sum() / squared.numel())
            assert found[f"vpd.{teacher}"].item() == pytest.approx(expected, rel=1e-4)
            continue
        total = 0.0
        for label, (scan, rho, phi, _) in zip(batch.voxel_labels.tolist(), batch.voxels.tolist(), strict=True):
            if label:
                weight = float(CLASS_WEIGHTS[label]) / 50 * float(weights[scan, rho, phi])
                total += weight * float(squared[scan, :, rho, phi].sum())
        assert found["lwd"].item() == pytest.approx(math.sqrt(total / (batch.scans * GRID[0] * GRID[1])), rel=1e-4)


@kinds
def test_pooled_pairs_are_weighted_in_the_cells_that_are_compared(kind):
    outputs, targets, batch = inputs()
    pairs = [{"teacher": "down1c", "student": "x4"}, {"teacher": "down3c", "student": "x2"}]
    term = built(logit=0, lwd=0, pairs=pairs, **kind).terms["vpd"]
    with torch.no_grad():
        found = term(outputs, targets, batch)
        for pair in term.pairs:
            adapted, student = compared(term.adapters, pair, outputs, targets, batch.scans)
            squared = (adapted - student).double().square()
            weights = cells_by_hand(kind, targets, batch, targets.layers["down3c"].shape)[:, None]
            expected = float((weights * squared).sum() / squared.numel())
            assert found[f"vpd.{pair.teacher}"].item() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_that_is_as_sure_everywhere_and_never_wrong_changes_nothing():
    outputs, targets, batch = inputs()
    labels = batch.voxel_labels
    sure = replace(targets, logits=4.0 * torch.nn.functional.one_hot(labels.clamp(min=1), targets.logits.shape[1]))
    plain, weighted = (built(**kind).eval() for kind in ({}, KINDS[2]))
    weighted.load_state_dict(plain.state_dict())
    one, other = (terms(outputs, sure, batch) for terms in (plain, weighted))
    for name, value in one.items():
        assert other[name].item() == pytest.approx(value.item(), rel=1e-5), name
    # Without labels there is nobody to say that the teacher is wrong.
    trusting = DistillationSettings(trust_labels=True)
    assert torch.equal(voxel_weights(trusting, targets, unlabelled(batch)), torch.ones(len(labels)))


def test_a_teacher_that_is_always_wrong_teaches_nothing():
    outputs, targets, batch = inputs()
    batch = replace(batch, voxel_labels=1 + (targets.logits[:, 1:].argmax(dim=1) + 1) % (targets.logits.shape[1] - 1))
    found = built(trust_labels=True, logit_threshold=None)(outputs, targets, batch)
    assert found["logit"].item() == found["lwd"].item() == 0.0
    (found["logit"] + found["lwd"]).backward()
    gradient = outputs.layers["x_up2"].grad
    assert torch.equal(gradient, torch.zeros_like(gradient))
