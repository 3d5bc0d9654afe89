"""A training step asks its device for nothing but the terms at its end: on a GPU each question would be waited for."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.scans.scatter import segment_max
from common.targets.store import TargetStore
from common.training.guarded_step import DeviceRows
from common.training.task import StepTerms
from stage2_train_student.students import polarnet
from stage2_train_student.training.experiment import TargetSource, student_data
from stage2_train_student.training.state import StudentState
from stage2_train_student.training.step import NonFiniteError, StudentStep
from tests.shared.reduced import NARROW, STREET_GRID, one_thread, reduced_experiment
from tests.student.test_optimisation import SEGMENTATION_ONLY, reduced, state_of

SCAN = ScanId("00", "000000")

ASKING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::bincount",
    "aten::masked_select",
    "aten::is_nonzero",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
}
"""Operations whose result, or its size, the host has to know before it can go on."""


class Questions(TorchDispatchMode):
    """Counts the operations for which a host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.name()
        by_mask = name.startswith(("aten::index.", "aten::index_put", "aten::_index_put_impl_")) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if name in ASKING or by_mask:
            self.asked[name] += 1
        return operation(*arguments, **(options or {}))


@pytest.fixture
def pooled_as_on_a_gpu(monkeypatch):
    """The widest point layer and its maximum in one piece; on a CPU they go pillar by pillar, for memory."""

    def whole(features, weight, bias, segment, segments):
        return segment_max(torch.nn.functional.linear(features, weight, bias), segment, segments)

    monkeypatch.setattr(polarnet, "pooled_linear", whole)


def loaded(streets, semantic_kitti, source: TargetSource, *overrides: str):
    settings = reduced_experiment(STREET_GRID, *overrides)
    return student_data(settings, Dataset.open(streets, semantic_kitti), source).load_batch([SCAN], 0)


WEIGHTED = ("distillation.confidence=true", "distillation.trust_labels=true")


@pytest.mark.parametrize(("targets", "more"), [("cache", ()), ("cache", WEIGHTED), ("none", SEGMENTATION_ONLY)])
def test_a_step_asks_for_nothing(streets, street_cache, semantic_kitti, pooled_as_on_a_gpu, targets, more):
    words = ("averaging=0.9", "optimiser.clip_norm=1.0", *more)
    # Dropped blocks, and the limit of points that no pillar of this scan exceeds, are part of it.
    settings = reduced_experiment(STREET_GRID, NARROW, "student.max_points_per_pillar=100000", *words)
    source = TargetSource(TargetStore.open(street_cache)) if targets == "cache" else TargetSource()
    batch = loaded(streets, semantic_kitti, source, *words)
    state = state_of(settings, semantic_kitti)
    one_step = StudentStep(state, settings, torch.ones(20))
    with one_thread():
        one_step([batch])
        with Questions() as questions:
            read = one_step.launch([batch])
    assert questions.asked == {}
    assert read()["loss"] > 0


def test_questions_are_noticed():
    values = torch.arange(4.0)
    with Questions() as questions:
        float(values.sum())
        values[values > 1]
        values.nonzero()
    assert questions.asked["aten::_local_scalar_dense"] == 1
    assert questions.asked["aten::nonzero"] >= 1
    assert questions.asked.total() >= 3


def launched(state: StudentState, batches: list, times: int) -> list[StepTerms]:
    one_step = StudentStep(state, reduced(), torch.ones(20))
    with one_thread():
        return [one_step.launch(batches) for _ in range(times)]


def test_no_step_is_taken_after_one_that_was_not_finite(streets, street_cache, semantic_kitti):
    """The next one is launched before the terms of the last are read."""
    batch = loaded(streets, semantic_kitti, TargetSource(TargetStore.open(street_cache)))
    state = state_of(reduced(), semantic_kitti)
    weight = state.networks.student.BEV_model.network.outc.conv.bias
    before = [parameter.detach().clone() for parameter in state.networks.student.parameters()]
    handle = weight.register_hook(lambda gradient: gradient * torch.nan)
    [bad] = launched(state, [batch], 1)
    handle.remove()
    [good] = launched(state, [batch], 1)
    with pytest.raises(NonFiniteError, match="step 1: the gradient's norm is nan"):
        bad()
    assert good()["loss"] > 0
    assert all(torch.equal(one, other) for one, other in zip(before, state.networks.student.parameters(), strict=True))


def test_rows_come_back_as_they_were():
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([3.0])]
    assert DeviceRows(rows).read() == [[1.0, 2.0], [], [3.0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_network_gives_the_same_gradients(semantic_kitti):
    from stage2_train_student.students.replay import Replay

    gradients = []
    for replayed in (False, True):
        network = state_of(reduced("student.dropblock=0"), semantic_kitti).networks.student.BEV_model.network.cuda()
        torch.manual_seed(0)
        maps = torch.randn(1, 16, *STREET_GRID[:2], device="cuda").requires_grad_()
        replay = Replay()
        if replayed:
            replay.capture(network.train(), torch.zeros_like(maps).requires_grad_())
        sum(layer.square().mean() for layer in replay(network.train(), maps).values()).backward()
        gradients.append([maps.grad, *(weight.grad for weight in network.parameters() if weight.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
