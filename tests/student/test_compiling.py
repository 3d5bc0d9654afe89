"""`compile: true` with the real torch.compile: its backend `eager` traces like every other, and needs no compiler."""

import functools

import pytest
import torch

from common.training.recorder import read_metrics
from stage2_train_student.students.birds_eye_unet import BirdsEyeUNet
from stage2_train_student.students.polarnet import PolarNet
from tests.shared.reduced import saved, succeed, train
from tests.student.test_optimisation import loaded, reduced, state_of, step

__all__ = ["loaded"]
SMALL = ("student.width=4", "student.dropblock=0", "epochs=2", "batch_size=4")
"""Maps of four scans and of one in training, and of one in validation."""


@pytest.fixture(autouse=True)
def traced_anew():
    """Nothing is left of what other tests compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def eager(monkeypatch):
    """The backend that needs no compiler."""
    monkeypatch.setattr(PolarNet, "compile", functools.partialmethod(PolarNet.compile, backend="eager"))


def test_only_the_network_that_is_trained_is_compiled_and_the_names_stay(loaded, semantic_kitti, eager):
    settings = reduced("compile=true", "averaging=0.9")
    state, plain = state_of(settings, semantic_kitti), state_of(reduced(), semantic_kitti)
    compiled = [module for module in state.networks.student.modules() if module._compiled_call_impl is not None]
    assert compiled == [state.networks.student.BEV_model.network]
    assert all(module._compiled_call_impl is None for module in state.networks.average.modules())
    assert (
        state.networks.student.state_dict().keys()
        == plain.networks.student.state_dict().keys()
        == state.networks.average.state_dict().keys()
    )
    assert step(state, settings, loaded[:1])["loss"] == step(plain, reduced(), loaded[:1])["loss"]


def test_maps_of_other_sizes_and_without_gradients_are_computed_as_without(semantic_kitti):
    torch.manual_seed(0)
    network = BirdsEyeUNet(4, 8, dropblock=0.0, width=4)
    compiled = BirdsEyeUNet(4, 8, dropblock=0.0, width=4)
    compiled.load_state_dict(network.state_dict())
    compiled.compile(backend="eager")
    for scans, radial, azimuth, training in (
        *((2, 32, 24, True), (1, 32, 24, False), (2, 32, 24, True)),
        *((1, 48, 40, True), (1, 48, 40, False), (3, 40, 36, False), (3, 40, 36, True)),
    ):
        maps = torch.randn(scans, 4, radial, azimuth)
        results = []
        for each in (network, compiled):
            each.train(training).zero_grad()
            with torch.set_grad_enabled(training):
                layers = each(maps)
            if training:
                sum(layer.square().mean() for layer in layers.values()).backward()
            results.append([*layers.values(), *(weight.grad for weight in each.parameters() if training)])
        for one, other in zip(*results, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_a_run_trains_validates_and_trains_on_as_without(streets, runs, eager):
    succeed(train(streets, None, runs / "plain", *SMALL, name="baseline"))
    succeed(train(streets, None, runs / "compiled", *SMALL, "compile=true", name="baseline"))
    plain, compiled = (read_metrics(runs / name) for name in ("plain", "compiled"))
    assert [line["kind"] for line in compiled] == [line["kind"] for line in plain]
    assert [line["epoch"] for line in compiled if line["kind"] == "validation"] == [1, 2]
    assert [line.get("loss") for line in compiled] == [line.get("loss") for line in plain]
    one, other = (saved(runs / name)["student"] for name in ("plain", "compiled"))
    assert all(torch.equal(other[name], value) for name, value in one.items())
