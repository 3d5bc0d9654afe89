"""PVKD's terms against slow, plain ones in float64: values, gradients, which blocks and rows are drawn."""

import math
from collections import Counter
from itertools import product

import pytest
import torch

from common.base.errors import SettingsError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets, VoxelFeatures
from stage2_train_student.distillation.settings import DistillationSettings
from stage2_train_student.distillation.supervoxels import (
    block_of_voxel,
    block_weights,
    blocks_of,
    drawn_blocks,
    kept_rows,
    minority_classes,
)
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.distillation.terms import Distillation, term_class
from stage2_train_student.distillation.voxel_affinity import VoxelAffinity, affinity_error
from stage2_train_student.distillation.voxel_output import output_divergence
from stage2_train_student.students.student import StudentOutputs
from tests.student.test_polarnet import CLASSES, GRID, small_batch
from tests.student.test_weights import kinds, raw_by_hand

TERMS = ("point_output", "voxel_output", "point_affinity", "voxel_affinity")
SIZE = (6, 10, 3)
"""Of a block on `GRID`: neither axis divides into whole blocks."""

CLASS_WEIGHTS = 1.0 / (torch.tensor([0.3, 0.5, 0.005, 0.195, 0.0001]) + 0.001)
"""Classes 2 and 4 are rare."""

MINORITY = {2, 4}


class Scene:
    """A batch with random logits and voxel layers of both networks, float64; the student's require gradients."""

    def __init__(self, seed: int = 0, points: int = 300) -> None:
        torch.manual_seed(seed)
        self.batch = small_batch(seed=seed, points=points)
        voxels = len(self.batch.voxels)
        self.logits = torch.randn(voxels, CLASSES, dtype=torch.float64, requires_grad=True)
        self.features = {name: torch.randn(voxels, 4, dtype=torch.float64) for name in ("vox", "up1e")}
        self.features["vox"] = self.features["vox"].relu()
        for features in self.features.values():
            features.requires_grad_()
        of_teacher = {name: torch.randn(voxels, 7, dtype=torch.float64) for name in self.features}
        self.targets = TeacherTargets(
            self.batch.voxels, 3.0 * torch.randn(voxels, CLASSES).double(), {}, self.layers(of_teacher)
        )
        self.outputs = StudentOutputs(self.logits, voxel_layers=self.layers(self.features))

    def layers(self, features: dict[str, torch.Tensor]) -> dict[str, VoxelFeatures]:
        return {name: VoxelFeatures(self.batch.voxels, values, GRID) for name, values in features.items()}


def settings(**values) -> DistillationSettings:
    supervoxels = {"size": SIZE, "count": 3, "points": 9, "voxels": 5} | values.pop("supervoxels", {})
    return DistillationSettings(logit=0, vpd=0, lwd=0, logit_scale=0.7, supervoxels=supervoxels, **values)


def context(**values) -> TermContext:
    return TermContext(settings(**values), {"vox": 7, "up1e": 7}, {}, CLASS_WEIGHTS)


def probabilities(logits: list[float], scale: float) -> list[float]:
    powers = [math.exp(scale * value) for value in logits]
    return [power / sum(powers) for power in powers]


def divergence_by_hand(student: list[float], teacher: list[float], scale: float) -> float:
    pairs = zip(probabilities(student, scale), probabilities(teacher, scale), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs) / len(student)


def cosine(left: list[float], right: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in left)) * math.sqrt(sum(x * x for x in right))
    return sum(x * y for x, y in zip(left, right, strict=True)) / lengths if lengths else 0.0


def affinity_by_hand(student: list[list[float]], teacher: list[list[float]], rows: list[int]) -> float:
    """Over every pair of the block; one that is filled up has a similarity of 0 in both networks."""
    total = 0.0
    for i, j in product(rows, rows):
        if min(i, j) >= 0:
            total += (cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2
    return total / len(rows) ** 2


def test_output_terms_equal_plain_loops():
    scene = Scene()
    student, teacher = scene.logits.tolist(), scene.targets.logits.tolist()
    of_voxel = [divergence_by_hand(*pair, scale=0.7) for pair in zip(student, teacher, strict=True)]
    of_point = [of_voxel[voxel] for voxel in scene.batch.point_voxel.tolist()]
    assert len(of_point) > len(of_voxel) + 20
    for name, entries in (("voxel_output", of_voxel), ("point_output", of_point)):
        value = term_class(name)(context())(scene.outputs, scene.targets, scene.batch)
        assert value.keys() == {name}
        assert value[name].item() == pytest.approx(sum(entries) / len(entries), rel=1e-12), name


@kinds
def test_weighted_output_terms_are_weighted_means_over_voxels_and_over_points(kind):
    scene = Scene()
    student, teacher = scene.logits.tolist(), scene.targets.logits.tolist()
    of_voxel = [divergence_by_hand(*pair, scale=0.7) for pair in zip(student, teacher, strict=True)]
    weights, every = raw_by_hand(kind, scene.targets, scene.batch), list(range(len(of_voxel)))
    for name, rows in (("voxel_output", every), ("point_output", scene.batch.point_voxel.tolist())):
        value = term_class(name)(context(**kind))(scene.outputs, scene.targets, scene.batch)[name].item()
        expected = sum(weights[row] * of_voxel[row] for row in rows) / sum(weights[row] for row in rows)
        assert value == pytest.approx(expected, rel=1e-5), name
        assert value != pytest.approx(sum(of_voxel[row] for row in rows) / len(rows), rel=1e-2), name


@pytest.mark.parametrize("name", ["point_affinity", "voxel_affinity"])
@pytest.mark.parametrize("seed", [0, 1])
def test_affinity_terms_equal_plain_loops_over_the_pairs_of_each_drawn_block(name, seed):
    scene, layer = Scene(seed), {"point_affinity": "vox", "voxel_affinity": "up1e"}[name]
    term = term_class(name)(context())
    assert isinstance(term, VoxelAffinity)
    torch.manual_seed(seed)
    rows = term.drawn_rows(scene.targets, scene.batch)
    assert rows.shape == (6, 9 if name == "point_affinity" else 5)
    torch.manual_seed(seed)
    value = term(scene.outputs, scene.targets, scene.batch)[name]
    student, teacher = scene.features[layer].tolist(), scene.targets.voxel_layers[layer].features.tolist()
    errors = [affinity_by_hand(student, teacher, block) for block in rows.tolist() if max(block) >= 0]
    assert value.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_terms_in_float32_are_within_a_millionth_of_the_plain_ones():
    scene = Scene(seed=3)
    scene32 = Scene(seed=3)
    as_float32 = {name: values.detach().float() for name, values in scene32.features.items()}
    outputs = StudentOutputs(scene32.logits.detach().float(), voxel_layers=scene32.layers(as_float32))
    for name in TERMS:
        term = term_class(name)(context())
        values = []
        for student in (scene.outputs, outputs):
            torch.manual_seed(0)
            values.append(term(student, scene.targets, scene.batch)[name].item())
        assert values[1] == pytest.approx(values[0], rel=1e-6), name


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.randn(6, 4).double()
    assert torch.autograd.gradcheck(lambda x: output_divergence(x, teacher, 0.7), (student,))
    rows = torch.tensor([[0, 1, 2, -1], [3, 5, 3, 4]])
    assert torch.autograd.gradcheck(lambda x: affinity_error(x, teacher, rows), (student,))


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_the_gradient_of_finite_differences(name):
    scene, term = Scene(points=40), term_class(name)(context())
    inputs = {"point_affinity": scene.features["vox"], "voxel_affinity": scene.features["up1e"]}.get(name, scene.logits)

    def value() -> torch.Tensor:
        torch.manual_seed(2)
        return term(scene.outputs, scene.targets, scene.batch)[name]

    (gradient,) = torch.autograd.grad(value(), inputs)
    # At features that are all zero a cosine has no derivative.
    smooth = gradient.abs() * (inputs.detach() != 0).any(dim=1, keepdim=True)
    place = divmod(int(smooth.argmax()), inputs.shape[1])
    assert gradient[place].abs() > 1e-4
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            inputs[place] += sign * step
            ends.append(value().item())
            inputs[place] -= sign * step
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[place]), rel=1e-5)


def test_autocast_leaves_affinities_as_they_are():
    torch.manual_seed(0)
    student, teacher, rows = torch.randn(9, 4), torch.randn(9, 4), torch.arange(9)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = affinity_error(student, teacher, rows)
    assert torch.equal(inside, affinity_error(student, teacher, rows))


def test_voxels_whose_features_are_all_zero_keep_gradients_finite():
    student = torch.tensor([[0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    error = affinity_error(student, torch.ones(2, 2), torch.tensor([[0, 1]])).sum()
    error.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 10


def weights_by_hand(batch: ScanBatch, rare: list[bool]) -> list[list[float]]:
    shape = blocks_of(GRID, SIZE)
    weights = []
    for scan in range(batch.scans):
        for i, j, k in product(*map(range, shape)):
            inside = [
                is_rare
                for (own, *bins), is_rare in zip(batch.voxels.tolist(), rare, strict=True)
                if own == scan and [b // s for b, s in zip(bins, SIZE, strict=True)] == [i, j, k]
            ]
            frequency = 4 * math.exp(-2 * sum(inside)) + 1
            distance = min((i + 1) * SIZE[0], GRID[0]) / GRID[0]
            weights.append(distance / frequency / math.prod(shape) if inside else 0.0)
    return [weights[: math.prod(shape)], weights[math.prod(shape) :]]


def test_blocks_weigh_by_their_rare_voxels_and_their_distance():
    scene = Scene()
    rare = [label in MINORITY for label in scene.batch.voxel_labels.tolist()]
    assert minority_classes(CLASS_WEIGHTS).nonzero()[:, 0].tolist() == sorted(MINORITY)
    weights = block_weights(scene.batch, block_of_voxel(scene.batch, SIZE), torch.tensor(rare), SIZE)
    assert blocks_of(GRID, SIZE) == (3, 3, 2)
    torch.testing.assert_close(weights, torch.tensor(weights_by_hand(scene.batch, rare)))
    assert len(weights[weights > 0].unique()) > 4


def test_blocks_are_drawn_in_proportion_to_their_weights_and_none_twice():
    torch.manual_seed(0)
    weights = torch.tensor([[1.0, 0.0, 2.0, 5.0]])
    counts = Counter(int(drawn_blocks(weights, 1).argmax()) for _ in range(4000))
    assert counts.keys() == {0, 2, 3}
    for block, weight in enumerate(weights[0].tolist()):
        assert counts[block] / 4000 == pytest.approx(weight / 8, abs=0.03)
    both = torch.cat((weights, weights))
    draws = drawn_blocks(both, 2)
    assert sorted(draws[draws >= 0].tolist()) == [0, 1, 2, 3]
    assert set(draws[:4].tolist()) <= {-1, 0, 1}
    few = drawn_blocks(both, 6)
    assert [(part >= 0).sum() for part in few.split(4)] == [3, 3]


def test_of_a_block_rare_rows_are_kept_first_and_others_at_random():
    draw = torch.tensor([0] * 20 + [-1] * 5 + [1] * 3)
    minority = torch.zeros(28, dtype=torch.bool)
    minority[[4, 11, 22]] = True
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        first, second, third = kept_rows(draw, minority, 3, 6).tolist()
        assert {4, 11} <= set(first) <= set(range(20))
        assert len(set(first)) == 6
        assert sorted(second) == [-1, -1, -1, 25, 26, 27]
        assert third == [-1] * 6
        seen |= set(first)
    assert seen == set(range(20))


def test_without_labels_the_classes_are_the_teachers():
    scene = Scene()
    batch = ScanBatch(**{**vars(scene.batch), "voxel_labels": torch.zeros_like(scene.batch.voxel_labels)})
    # Of "unlabelled" a teacher may say anything.
    assert bool((scene.targets.logits.argmax(dim=1) == 0).any())
    labels = 1 + scene.targets.logits[:, 1:].argmax(dim=1)
    labelled = ScanBatch(**{**vars(scene.batch), "voxel_labels": labels})
    term = VoxelAffinity(context())
    drawn = []
    for cloud in (batch, labelled):
        torch.manual_seed(0)
        drawn.append(term.drawn_rows(scene.targets, cloud))
    assert torch.equal(*drawn)


def test_a_batch_of_no_scan_is_zero():
    scene = Scene()
    features = {name: values[:0] for name, values in scene.features.items()}
    empty = StudentOutputs(scene.logits[:0], voxel_layers=scene.layers(features))
    for name in TERMS:
        value = term_class(name)(context())(empty, scene.targets.without_scans(), scene.batch.without_scans())
        assert value[name].item() == 0


def test_together_they_are_weighted_as_published():
    scene = Scene()
    weights = dict(zip(TERMS, (0.1, 0.15, 0.15, 0.25), strict=True))
    distillation = Distillation(context(others=weights))
    values = distillation(scene.outputs, scene.targets, scene.batch)
    assert values.keys() == set(TERMS)
    expected = sum(weight * values[name].item() for name, weight in weights.items())
    assert distillation.total(values).item() == pytest.approx(expected)
    assert not list(distillation.parameters())
    assert not distillation.state_dict()


def test_pairs_of_an_affinity_term_are_weighted():
    scene = Scene()
    pairs = [{"term": "voxel_affinity", "teacher": name, "student": name} for name in ("vox", "up1e")]
    values = []
    for chosen in ([pairs[0]], [pairs[1]], [pairs[0] | {"weight": 0.5}, pairs[1] | {"weight": 3.0}]):
        torch.manual_seed(0)
        term = VoxelAffinity(context(pairs=chosen))
        values.append(term(scene.outputs, scene.targets, scene.batch)["voxel_affinity"].item())
    assert values[2] == pytest.approx(0.5 * values[0] + 3.0 * values[1])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"teacher": "up9e", "student": "vox"}, "the teacher has no voxel features of a layer up9e .it has: vox, up1e"),
        ({"teacher": "vox", "student": "x2"}, "the student has no voxel features of a layer x2"),
        ({"teacher": "coarse", "student": "vox"}, "teacher's layer coarse has 8x12x4 bins, not the grid's voxels"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(pair, message):
    scene = Scene()
    coarse = VoxelFeatures(scene.batch.voxels[:3], torch.ones(3, 2), (8, 12, 4))
    targets = TeacherTargets(**vars(scene.targets) | {"voxel_layers": scene.targets.voxel_layers | {"coarse": coarse}})
    term = VoxelAffinity(context(pairs=[pair | {"term": "voxel_affinity"}]))
    with pytest.raises(SettingsError, match=message):
        term(scene.outputs, targets, scene.batch)
