"""A training step on a pretended GPU: nothing of it stays on the CPU, nothing is waited for, the terms are the same."""

import threading
from collections.abc import Iterator

import pytest
import torch

from common.base.devices import CPU
from common.base.records import start_to_host
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.step import StudentStep
from tests.shared.pretended_gpu import GPU, NOT_THERE_YET, Gpu, pretended_gpu
from tests.shared.reduced import NARROW, STREET_GRID, one_thread, reduced_experiment
from tests.student.test_optimisation import SEGMENTATION_ONLY

SCANS = [ScanId("00", f"{frame:06d}") for frame in range(4)]
NOTHING_BY_CHANCE = ("student.dropblock=0", "student.max_points_per_pillar=100000")
USUAL = (*NOTHING_BY_CHANCE, "averaging=0.9", "optimiser.clip_norm=1.0", "views=replay")
WEIGHTED = ("distillation.confidence=true", "distillation.trust_labels=true", "distillation.logit_class_weights=true")


@pytest.fixture
def gpu(monkeypatch) -> Iterator[Gpu]:
    """A pretended one, which threads that load batches can use as well."""
    sent = StudentBatch.sent
    with pretended_gpu() as gpu:

        def sent_by_any_thread(batch, stream):
            with gpu.usable():
                return sent(batch, stream)

        monkeypatch.setattr(StudentBatch, "sent", sent_by_any_thread)
        yield gpu


def training(settings: ExperimentSettings, streets, street_cache, label_map, device: torch.device):
    """A step of a fresh student, and its batches."""
    store = TargetStore.open(street_cache) if settings.targets == "cache" else None
    source = TargetSource(store, channels=store.identity.layers if store else {})
    torch.manual_seed(0)
    state = new_state(settings, label_map, source, device)
    data = student_data(settings, Dataset.open(streets, label_map), source, device, SCANS)
    one_step = StudentStep(state, settings, torch.ones(20).to(device))
    return one_step, data.batches([SCANS[:2], SCANS[2:]], 0, threads=2)


@pytest.mark.parametrize("more", [(), WEIGHTED, SEGMENTATION_ONLY, ("mix={probability: 1}",)])
def test_a_step_stays_on_its_gpu_and_waits_for_nothing(streets, street_cache, semantic_kitti, gpu, more):
    settings, terms = reduced_experiment(STREET_GRID, NARROW, *USUAL, *more), []
    for device in (CPU, GPU):
        one_step, batches = training(settings, streets, street_cache, semantic_kitti, device)
        read = []
        with one_thread():
            for loaded in batches:
                gpu.waits.clear()
                read.append(one_step.launch([loaded]))
                assert not +gpu.waits
        terms.append([one() for one in read])
        assert all(parameter.device == device for parameter in one_step.state.networks.student.parameters())
    for on_cpu, on_gpu in zip(*terms, strict=True):
        # Its last bit decides which of two points that nearly tie learns.
        assert on_gpu.pop("gradient_norm") == pytest.approx(on_cpu.pop("gradient_norm"), rel=0.1)
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_threads_that_send_batches_choose_the_gpu(streets, street_cache, semantic_kitti, gpu):
    """Else each would go back to the first GPU, and take memory there."""
    list(training(reduced_experiment(STREET_GRID, NARROW), streets, street_cache, semantic_kitti, GPU)[1])
    others = {device for thread, device in gpu.current.items() if thread != threading.get_ident()}
    assert others == {GPU}


def test_random_draws_stay_on_the_gpu_too(streets, street_cache, semantic_kitti, gpu):
    words = ("student.dropblock=0.5", "student.dropout=0.5", "student.max_points_per_pillar=3")
    settings = reduced_experiment(STREET_GRID, NARROW, *words)
    one_step, batches = training(settings, streets, street_cache, semantic_kitti, GPU)
    with one_thread():
        assert one_step([next(batches)])["loss"] > 0


def test_what_a_gpu_refuses_is_refused(gpu):
    there, here = torch.arange(4.0).to("cuda"), torch.arange(4.0)
    assert there.is_cuda
    assert (there * 2 + torch.tensor(1.0)).device == GPU
    assert torch.zeros_like(there).new_zeros(3).device == torch.arange(3, device=there.device).device == GPU
    for mixed in (lambda: there + here, lambda: torch.cat((there, here)), lambda: there.index_select(0, here.long())):
        with pytest.raises(RuntimeError, match="on the CPU are those of shape"):
            mixed()
    with pytest.raises(TypeError, match="cuda:0"):
        there.numpy()
    assert not there.cpu().is_cuda


def test_what_is_waited_for_is_counted(gpu):
    there, here = torch.arange(4.0).to("cuda"), torch.arange(4.0)
    questions = {
        "a copy": [
            lambda: here.to(GPU),
            lambda: there.cpu(),
            lambda: torch.tensor([1], device=GPU),
            lambda: there[[0]],
        ],
        "aten::_local_scalar_dense": [lambda: float(there.sum()), lambda: bool((there > 1).any())],
        "aten::index.Tensor": [lambda: there[there > 1]],
        "tolist": [there.tolist],
    }
    for name, asked in questions.items():
        for question in asked:
            gpu.waits.clear()
            question()
            assert +gpu.waits == {name: 1}
    gpu.waits.clear()
    here.pin_memory().to(GPU, non_blocking=True)
    assert not +gpu.waits


def test_a_copy_is_there_once_it_is_waited_for(gpu):
    wait = start_to_host([torch.arange(4.0).to(GPU)])
    early = torch.arange(4.0).to(GPU).to("cpu", non_blocking=True)
    assert wait()[0].tolist() == [0, 1, 2, 3]
    assert early.tolist() == [NOT_THERE_YET] * 4
