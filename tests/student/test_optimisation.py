"""What is done to gradients, learning rate, weights and precision, and when a run ends early."""

import math
import re

import pytest
import torch
from torch import nn

from common.base.devices import set_float32_precision
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.scans.scatter import segment_max
from common.targets.store import TargetStore
from common.training.metrics import ConfusionMatrix
from common.training.recorder import read_metrics
from stage2_train_student import train as train_module
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students import polarnet
from stage2_train_student.students.polarnet import PolarNet, without_running_statistics
from stage2_train_student.students.student import StudentSettings
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.state import StudentState, averaged_copy, decay_at, update_average
from stage2_train_student.training.step import NonFiniteError, StudentStep, losses, targets_of
from tests.shared.reduced import (
    FULL_LAYERS,
    NARROW,
    STREET_GRID,
    command,
    fail,
    one_thread,
    reduced_experiment,
    saved,
    succeed,
    train,
    train_words,
)

CPU = torch.device("cpu")
SCANS = [ScanId("00", f"{frame:06d}") for frame in range(2)]
SEGMENTATION_ONLY = ("targets=none", "distillation.logit=0", "distillation.vpd=0", "distillation.lwd=0")


# One step


@pytest.fixture
def loaded(streets, street_cache, semantic_kitti) -> list[StudentBatch]:
    """Two batches of one scan each."""
    data = student_data(reduced(), Dataset.open(streets, semantic_kitti), TargetSource(TargetStore.open(street_cache)))
    return [data.load_batch([scan], 0) for scan in SCANS]


def reduced(*overrides: str) -> ExperimentSettings:
    """Settings of a student in which nothing is left to chance."""
    nothing_by_chance = ("student.dropblock=0", "student.max_points_per_pillar=100000")
    return reduced_experiment(STREET_GRID, NARROW, *nothing_by_chance, *overrides)


def state_of(settings: ExperimentSettings, label_map) -> StudentState:
    torch.manual_seed(0)
    return new_state(settings, label_map, TargetSource(channels=FULL_LAYERS), CPU)


def step(
    state: StudentState, settings: ExperimentSettings, batches: list[StudentBatch], steps: int = 4
) -> dict[str, float]:
    with one_thread():
        return StudentStep(state, settings, torch.ones(20))(batches, len(batches), steps)


def gradients(state: StudentState) -> list[torch.Tensor]:
    parameters = [*state.networks.student.parameters(), *state.networks.distillation.parameters()]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def test_long_gradients_are_scaled_to_the_limit_and_short_ones_left(loaded, semantic_kitti):
    plain, clipped, lenient = (reduced(f"optimiser.clip_norm={limit}") for limit in ("null", "0.5", "1000000.0"))
    results = []
    for settings in (plain, clipped, lenient):
        state = state_of(settings, semantic_kitti)
        terms = step(state, settings, loaded[:1])
        results.append((terms["gradient_norm"], gradients(state)))
    (norm, free), (same_norm, short), (_, left) = results
    assert norm == same_norm > 0.5
    assert torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in short])).item() == pytest.approx(
        0.5, rel=1e-3
    )
    for one, other in zip(free, short, strict=True):
        torch.testing.assert_close(one * (0.5 / norm), other, rtol=1e-4, atol=1e-9)
    assert all(torch.equal(one, other) for one, other in zip(free, left, strict=True))


def test_accumulated_gradients_are_the_mean_of_those_of_the_batches(loaded, semantic_kitti):
    settings = reduced()
    singles = []
    for batch in loaded:
        state = state_of(settings, semantic_kitti)
        singles.append((step(state, settings, [batch]), gradients(state)))
    state = state_of(settings, semantic_kitti)
    terms = step(state, settings, loaded)
    assert state.step == 1
    assert terms["loss"] == pytest.approx((singles[0][0]["loss"] + singles[1][0]["loss"]) / 2, rel=1e-6)
    for one, other, both in zip(singles[0][1], singles[1][1], gradients(state), strict=True):
        torch.testing.assert_close((one + other) / 2, both, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_of_a_step_is_the_schedules(loaded, semantic_kitti):
    settings = reduced("optimiser.schedule.kind=cosine", "optimiser.learning_rate=0.01")
    state = state_of(settings, semantic_kitti)
    rates = [step(state, settings, loaded[:1], steps=3)["learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0.01, 0.005, 0.0])
    before = [parameter.clone() for parameter in state.networks.student.parameters()]
    step(state, settings, loaded[:1], steps=3)
    assert all(torch.equal(one, other) for one, other in zip(before, state.networks.student.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_leaves_weights_and_optimiser(loaded, semantic_kitti):
    settings = reduced()
    state = state_of(settings, semantic_kitti)
    before = [parameter.detach().clone() for parameter in state.networks.student.parameters()]
    state.networks.student.BEV_model.network.outc.conv.bias.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(NonFiniteError, match="gradient's norm is nan for scans 00/000000") as error:
        step(state, settings, loaded[:1])
    assert error.value.loaded is loaded[0]
    assert error.value.terms["loss"] > 0
    assert error.value.step == 1
    assert not any(value.any() for kept in state.optimiser.state.values() for value in kept.values())
    assert all(torch.equal(one, other) for one, other in zip(before, state.networks.student.parameters(), strict=True))


@pytest.mark.parametrize("recomputed_points", [0, polarnet.RECOMPUTED_POINTS])
def test_the_point_network_in_parts_gives_the_same_gradients_and_statistics(
    loaded, semantic_kitti, recomputed_points, monkeypatch
):
    monkeypatch.setattr(polarnet, "RECOMPUTED_POINTS", recomputed_points)
    batch = loaded[0].batch
    inputs = (batch.point_features.double(), batch.point_pillar, len(batch.pillars))
    results = []
    for in_parts in (False, True):
        student = state_of(reduced(), semantic_kitti).networks.student.double().train()
        pooled = student.pooled_points(*inputs) if in_parts else segment_max(student.PPmodel(inputs[0]), *inputs[1:])
        pooled.square().mean().backward()
        gradient = [parameter.grad for parameter in student.PPmodel.parameters()]
        results.append([pooled.detach(), *gradient, *student.PPmodel.buffers()])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


class SharedNorm(nn.BatchNorm1d):
    """Stands for a norm whose passes are collectives."""


def test_norms_that_processes_share_take_as_many_passes_however_many_points(loaded, semantic_kitti):
    batch = loaded[0].batch
    assert len(batch.point_features) < polarnet.RECOMPUTED_POINTS
    for norm, expected in ((nn.BatchNorm1d, 1), (SharedNorm, 2)):
        student = state_of(reduced(), semantic_kitti).networks.student.train()
        student.PPmodel[0], passes = norm(student.PPmodel[0].num_features), []
        student.PPmodel[0].register_forward_hook(lambda *_, passes=passes: passes.append(1))
        student.pooled_points(batch.point_features, batch.point_pillar, len(batch.pillars)).sum().backward()
        assert len(passes) == expected


def test_running_statistics_come_back_after_an_error(semantic_kitti):
    network = state_of(reduced(), semantic_kitti).networks.student.PPmodel.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    with pytest.raises(RuntimeError, match=r"must match|running_mean|elements"), without_running_statistics(network):
        network(torch.randn(7, 8))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())


# Averaging


def test_the_average_follows_the_formula_and_includes_statistics():
    student = PolarNet(StudentSettings(point_channels=8, compressed_channels=4, width=4), 16, 20)
    average = averaged_copy(student)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(1)
    update_average(average, student, 0.75)
    for name, value in average.state_dict().items():
        wanted = start[name] + (0.25 if value.is_floating_point() else 1)
        torch.testing.assert_close(value, wanted, msg=name)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_decay_is_small_at_first():
    assert decay_at(0, 0.999) == pytest.approx(0.1)
    assert decay_at(100_000, 0.999) == 0.999


def test_the_average_is_validated_and_saved(streets, street_cache, runs, monkeypatch):
    seen = []
    student_logits = train_module.student_logits
    monkeypatch.setattr(train_module, "student_logits", lambda student: seen.append(student) or student_logits(student))
    run = runs / "averaged"
    succeed(train(streets, street_cache, run, "batch_size=5", "epochs=2", "averaging=0.5"))
    state = saved(run)
    last = torch.load(run / "student_last.pt", weights_only=True)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    for name, value in state["average"].items():
        assert torch.equal(last[name], value)
        assert torch.equal(seen[1].state_dict()[name], value)
    assert any(not torch.equal(last[name], value) for name, value in state["student"].items())


# Early stopping


def test_a_run_stops_when_validations_stop_getting_better(streets, street_cache, runs, monkeypatch):
    shares = iter([0.3, 0.2, 0.4, 0.4, 0.1, 0.9])
    monkeypatch.setattr(ConfusionMatrix, "mean_iou", lambda _: next(shares))
    options = ("batch_size=5", "epochs=6", "early_stopping=2", *SEGMENTATION_ONLY)
    output = succeed(train(streets, None, runs / "early", *options))
    assert "2 validations without a better mIoU" in output
    assert [line["miou"] for line in read_metrics(runs / "early", "validation")] == [0.3, 0.2, 0.4, 0.4, 0.1]
    progress = saved(runs / "early")["progress"]
    assert (progress["best_miou"], progress["validations_since_best"]) == (0.4, 2)
    again = succeed(train(streets, None, runs / "early", *options, options=("--resume",)))
    assert "2 validations without a better mIoU" in again
    patient = ("early_stopping=3", *options[:2], *SEGMENTATION_ONLY)
    succeed(train(streets, None, runs / "early", *patient, options=("--resume",)))
    assert saved(runs / "early")["progress"]["best_miou"] == 0.9


# Precision and compilation


@pytest.mark.parametrize("tiles", [False, True], ids=["channels first", "channels last"])
def test_bfloat16_is_near_float32_and_its_losses_are_float32(loaded, semantic_kitti, monkeypatch, tiles):
    """With maps as they are on CPUs with and without AMX; layouts are told apart by the network's output."""
    monkeypatch.setattr("stage2_train_student.students.pillar_maps.computes_bfloat16_tiles", lambda: tiles)
    state = state_of(reduced(), semantic_kitti)
    layouts = []
    state.networks.student.BEV_model.network.register_forward_hook(
        lambda network, maps, layers: layouts.append(
            [layer.is_contiguous(memory_format=torch.channels_last) for layer in layers.values()]
        )
    )
    batch = loaded[0].batch
    targets = targets_of(loaded[0], batch, None, CPU)
    results = []
    for precision in ("float32", "bfloat16"):
        with one_thread():
            loss, terms = losses(
                state.networks.student, state.networks.distillation, batch, targets, torch.ones(20), precision
            )
        assert {value.dtype for value in (loss, *terms.values())} == {torch.float32}
        results.append(loss.item())
        loss.backward()
    assert results[0] != results[1]
    assert results[1] == pytest.approx(results[0], rel=0.05)
    assert [set(last) for last in layouts] == [{False}, {tiles}]
    assert all(gradient.isfinite().all() for gradient in gradients(state))


def test_bfloat16_keeps_weights_and_gradients_in_float32(loaded, semantic_kitti):
    settings = reduced("precision=bfloat16")
    state = state_of(settings, semantic_kitti)
    first = step(state, settings, loaded[:1])["loss"]
    assert {value.dtype for value in (*state.networks.student.parameters(), *gradients(state))} == {torch.float32}
    for _ in range(3):
        last = step(state, settings, loaded[:1])["loss"]
    assert last < first


def test_float16_without_cuda_is_refused(streets, street_cache, runs):
    assert "float16 needs CUDA" in fail(train(streets, street_cache, runs / "half", "precision=float16"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimiser.schedule.kind=one_cycle", "give warm_up"),
        ("averaging=1.0", "averaging"),
        ("optimiser.accumulate=0", "optimiser.accumulate"),
        ("optimiser.clip_norm=0", "optimiser.clip_norm"),
        ("early_stopping=0", "early_stopping"),
        ("optimiser.learning_rate=.inf", "optimiser.learning_rate: must be a finite number"),
        ("optimiser.learning_rate=.nan", "optimiser.learning_rate: must be"),
        ("optimiser.learning_rate=0", "optimiser.learning_rate: must be greater than 0"),
        ("optimiser.weight_decay=-1e-4", "optimiser.weight_decay"),
        ("optimiser.clip_norm=.inf", "optimiser.clip_norm"),
        ("distillation.vpd=.inf", "distillation.vpd"),
        ("distillation.logit_threshold=.nan", "distillation.logit_threshold"),
        ("augmentation.policy.translate=.inf", "augmentation.policy.translate"),
    ],
)
def test_settings_out_of_range_are_refused(streets, street_cache, runs, override, reason):
    assert re.search(reason, fail(train(streets, street_cache, runs / "wrong", override)))


# Where the time goes


def test_profile_names_every_part_and_leaves_no_run(streets, street_cache, runs):
    words = train_words(streets, street_cache, runs / "none", "batch_size=2")
    words[0] = "profile"
    at = words.index("--run")
    set_float32_precision(tf32=True)
    output = succeed(command(stage_two, *words[:at], *words[at + 2 :], "--steps", "2"))
    # As in training: of the precision that the settings ask for.
    assert not torch.backends.cudnn.allow_tf32
    parts = ["load", "copy to the device", "targets", "forward", "loss: cross entropy, lovasz"]
    parts += [*(f"loss: {term}" for term in ("logit", "vpd", "lwd")), "backward", "optimiser", "sum"]
    table = [line for line in output.splitlines() if line.endswith("%")]
    assert [re.split(r"  +", line)[0] for line in table] == parts
    seconds = [float(line.split()[-2]) for line in table]
    assert min(seconds) >= 0
    assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=1e-3)
    assert not (runs / "none").exists()
