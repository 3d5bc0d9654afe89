"""PolarNet: published keys, sparse logits equal to dense ones, circular convolutions, DropBlock, points per pillar."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from common.base.errors import SettingsError
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import ScanBatch, batch_scans
from stage2_train_student.students.birds_eye_unet import STUDENT_LAYERS, DoubleConvolution, drop_blocks, wrap_azimuth
from stage2_train_student.students.pillar_maps import pillars_last
from stage2_train_student.students.polarnet import PolarNet, choose_points
from stage2_train_student.students.student import StudentSettings
from tests.shared.reduced import reduced_experiment

GRID = (16, 24, 4)
CLASSES = 5
DOUBLE_CONVOLUTIONS = {
    "inc.conv.1": (32, 64),
    "down1.mpconv.1": (64, 128),
    "down2.mpconv.1": (128, 256),
    "down3.mpconv.1": (256, 512),
    "down4.mpconv.1": (512, 512),
    "up1.conv": (1024, 256),
    "up2.conv": (512, 128),
    "up3.conv": (256, 64),
    "up4.conv": (128, 64),
}


def small_batch(scans: int = 2, points: int = 300, grid: tuple[int, int, int] = GRID, seed: int = 0) -> ScanBatch:
    """Random points with random labels on a small grid, features in float64."""
    generator = np.random.default_rng(seed)
    polar_grid = PolarGrid.named("polarnet", grid)
    voxelised = []
    for _ in range(scans):
        cloud = generator.normal(0.0, [20.0, 20.0, 2.0, 0.5], (points, 4)).astype(np.float32)
        labels = generator.integers(0, CLASSES, points).astype(np.uint8)
        voxelised.append(voxelise(cloud, polar_grid, labels, CLASSES))
    return in_float64(batch_scans(voxelised, grid))


def in_float64(batch: ScanBatch) -> ScanBatch:
    """The same batch with float64 point features."""
    return ScanBatch(**{**vars(batch), "point_features": batch.point_features.double()})


def small_student(seed: int = 0, **settings) -> PolarNet:
    """PolarNet for `GRID` in float64, statistics of its batch norms away from their initial values."""
    torch.manual_seed(seed)
    chosen = StudentSettings(**{"point_channels": 16, "compressed_channels": 8, "dropout": 0.0, **settings})
    student = PolarNet(chosen, GRID[2], CLASSES).double()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    student.PPmodel[0].running_var.fill_(400.0)
    return student


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published PolarNet checkpoint, 32 heights and 20 classes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add_norm(key: str, channels: int) -> None:
        shapes.update({f"{key}.{name}": (channels,) for name in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{key}.num_batches_tracked"] = ()

    def add_weight(key: str, *shape: int) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = shape, shape[:1]

    for position, channels in {0: 9, 2: 64, 5: 128, 8: 256}.items():
        add_norm(f"PPmodel.{position}", channels)
    for position, shape in {1: (64, 9), 4: (128, 64), 7: (256, 128), 10: (512, 256)}.items():
        add_weight(f"PPmodel.{position}", *shape)
    add_weight("fea_compression.0", 32, 512)
    network = "BEV_model.network"
    add_norm(f"{network}.inc.conv.0", 32)
    for block, (channels_in, channels) in DOUBLE_CONVOLUTIONS.items():
        for name, inputs in {"conv1": channels_in, "conv2": channels}.items():
            add_weight(f"{network}.{block}.{name}.0", channels, inputs, 3, 3)
            add_norm(f"{network}.{block}.{name}.1", channels)
    add_weight(f"{network}.outc.conv", 640, 64, 1, 1)
    return shapes


def test_state_dict_is_that_of_published_checkpoints():
    student = PolarNet(StudentSettings(), 32, 20)
    assert {key: tuple(value.shape) for key, value in student.state_dict().items()} == published_shapes()
    parameters = sum(parameter.numel() for parameter in student.parameters())
    assert round(parameters / 1e6, 1) == 13.6


def test_layers_have_the_announced_channels_and_sizes():
    batch = small_batch()
    outputs = small_student().eval()(batch)
    sizes = {"x2": (8, 12), "x4": (2, 3), "x_up5": (2, 3), "x_up3": (8, 12), "x_up2": (16, 24)}
    assert {name: tuple(layer.shape) for name, layer in outputs.layers.items()} == {
        name: (2, STUDENT_LAYERS[name], *sizes[name]) for name in STUDENT_LAYERS
    }
    assert outputs.voxel_logits.shape == (len(batch.voxels), CLASSES)


def dense_logits(student: PolarNet, features: torch.Tensor) -> torch.Tensor:
    """The published form of the classifier: a dense convolution, read as [B, R, P, heights, classes]."""
    logits = student.BEV_model.network.outc.conv(features).permute(0, 2, 3, 1)
    return logits.reshape(*logits.shape[:3], student.height_bins, student.classes)


def test_sparse_logits_equal_dense_ones_in_value_and_gradient():
    batch, student = small_batch(), small_student().eval()
    weight = torch.randn(len(batch.voxels), CLASSES, dtype=torch.float64)
    gradients = []
    values = []
    for dense in (False, True):
        student.zero_grad()
        outputs = student(batch)
        scan, rho, phi, z = batch.voxels.unbind(1)
        logits = dense_logits(student, outputs.layers["x_up2"])[scan, rho, phi, z] if dense else outputs.voxel_logits
        (logits * weight).sum().backward()
        values.append(logits.detach())
        gradients.append({name: parameter.grad.clone() for name, parameter in student.named_parameters()})
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-9)
    assert all(float(gradient.abs().max()) > 0 for name, gradient in gradients[0].items() if name.endswith("weight"))


def test_scans_of_a_batch_do_not_mix():
    student = small_student().eval()
    both = student(small_batch(scans=2)).voxel_logits
    first = student(small_batch(scans=1)).voxel_logits
    torch.testing.assert_close(both[: len(first)], first, rtol=1e-10, atol=1e-10)


def test_convolutions_wrap_around_the_azimuth_and_end_at_the_radial_border():
    torch.manual_seed(0)
    block = DoubleConvolution(3, 4).double().eval()
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    expected = maps
    for part in (block.conv1, block.conv2):
        expected = part(functional.pad(expected, (1, 1, 0, 0), mode="circular"))
    torch.testing.assert_close(block(maps), expected)
    torch.testing.assert_close(block(maps.roll(3, dims=3)), block(maps).roll(3, dims=3))
    assert not torch.allclose(block(maps.roll(3, dims=2)), block(maps).roll(3, dims=2))


def test_encoder_turns_with_the_scan():
    """Turning by whole coarse bins turns the encoder's layers; bilinear upsampling does not wrap, so only those."""
    student = small_student().eval()
    pillar_map = student.pillar_map(small_batch())
    layers = student.BEV_model.network(pillar_map)
    turned = student.BEV_model.network(pillar_map.roll(8, dims=3))
    torch.testing.assert_close(turned["x2"], layers["x2"].roll(4, dims=3))
    torch.testing.assert_close(turned["x4"], layers["x4"].roll(1, dims=3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_wrap_azimuth_gradient(layout):
    torch.manual_seed(0)
    maps = [torch.randn(2, channels, 3, 5, dtype=torch.float64) for channels in (2, 3)]
    maps = [values.contiguous(memory_format=layout).requires_grad_() for values in maps]
    expected = functional.pad(torch.cat(maps, dim=1), (1, 1, 0, 0), mode="circular")
    torch.testing.assert_close(wrap_azimuth(*maps), expected)
    assert torch.autograd.gradcheck(wrap_azimuth, maps)


def test_drop_blocks_zeroes_whole_squares_in_all_channels_and_rescales():
    torch.manual_seed(0)
    features = torch.ones(2, 3, 60, 60)
    dropped = drop_blocks(features, 0.5)
    kept = dropped != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    scale = kept.numel() / kept.sum()
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], float(scale)))
    assert 0.5 < float(kept.float().mean()) < 0.75  # (1 - 0.5 / 49)^49 = 0.61
    # Every dropped bin belongs to a dropped 7x7 square: opening the dropped region changes nothing.
    gone = functional.pad((~kept[:, :1]).float(), (6, 6, 6, 6), value=1.0)
    eroded = -functional.max_pool2d(-gone, 7, stride=1)
    opened = functional.max_pool2d(functional.pad(eroded, (6, 6, 6, 6)), 7, stride=1)[:, :, 6:-6, 6:-6]
    assert torch.equal(opened[:, :, :60, :60] > 0, ~kept[:, :1])


def test_drop_blocks_counts_bins_of_bfloat16_maps_exactly():
    for seed in range(5):
        scaled = []
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(seed)
            scaled.append(drop_blocks(torch.ones(1, 1, 120, 90, dtype=dtype), 0.5))
        assert torch.equal(scaled[1], scaled[0].bfloat16())


def test_drop_blocks_of_everything_gives_zeros():
    dropped = drop_blocks(torch.ones(1, 2, 8, 8), 49.0)
    assert torch.equal(dropped, torch.zeros_like(dropped))


def test_randomness_acts_in_training_only():
    batch, student = small_batch(), small_student(dropblock=0.5)
    student.eval()
    assert torch.equal(student(batch).voxel_logits, student(batch).voxel_logits)
    student.train()
    assert not torch.equal(student(batch).voxel_logits, student(batch).voxel_logits)
    assert not (pillars_last(student(batch).layers["x_up2"]) != 0).all()


def test_dropout_acts_where_it_is_asked_for_and_before_the_classifier_only():
    batch = small_batch()
    without = small_student(dropblock=0.0).train()(batch)
    assert without.classifier_input is without.layers["x_up2"]
    dropping = small_student(dropblock=0.0, dropout=0.5).train()(batch)
    assert (dropping.layers["x_up2"] != 0).all()
    share = float((dropping.classifier_input == 0).double().mean())
    assert 0.45 < share < 0.55


def test_the_dropout_that_goes_with_dropblock_is_a_setting_that_is_seen():
    published = {0.5: 0.0, 0.1: 0.0, 0: 0.5}
    for dropblock, dropout in published.items():
        settings = StudentSettings.model_validate({"dropblock": dropblock})
        assert settings.model_dump()["dropout"] == dropout
        assert PolarNet.build(settings, GRID, CLASSES).dropout == dropout
    assert StudentSettings(dropblock=0.0, dropout=0.0).dropout == 0.0
    assert StudentSettings(dropblock=0.5, dropout=0.2).dropout == 0.2
    for dropped in ("1.0", ".nan", "-0.1"):
        with pytest.raises(SettingsError, match=r"student\.dropout"):
            reduced_experiment(GRID, f"student.dropout={dropped}")
    asked = reduced_experiment(GRID, "student.dropblock=0")
    assert (asked.student.dropblock, asked.student.dropout) == (0.0, 0.0)


def test_choose_points_keeps_at_most_the_limit_of_each_pillar_at_random():
    point_pillar = torch.tensor([0, 1, 1, 2, 1, 1, 2, 1, 0, 1])
    assert torch.equal(choose_points(point_pillar, 3, 6), torch.arange(len(point_pillar)))
    torch.manual_seed(0)
    draws = [choose_points(point_pillar, 3, 2) for _ in range(50)]
    for kept in draws:
        assert torch.equal(torch.bincount(point_pillar[kept]), torch.tensor([2, 2, 2]))
        assert torch.equal(kept, kept.unique())
    assert torch.equal(torch.cat(draws).unique(), torch.arange(len(point_pillar)))
    torch.manual_seed(0)
    assert torch.equal(draws[0], choose_points(point_pillar, 3, 2))


def test_limit_of_points_per_pillar_acts_in_training_only():
    batch, student = small_batch(points=2000), small_student(max_points_per_pillar=3)
    assert int(torch.bincount(batch.point_pillar).max()) > 3
    seen = []
    student.PPmodel[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    student.train()(batch)
    student.eval()(batch)
    limited = int(torch.bincount(batch.point_pillar).clamp(max=3).sum())
    assert seen == [limited, len(batch.point_features)]


@pytest.mark.parametrize(("grid", "message"), [((16, 24, 8), "height bins"), ((8, 24, 4), "halves both four times")])
def test_grid_that_does_not_fit_is_refused(grid, message):
    with pytest.raises(SettingsError, match=message):
        small_student()(small_batch(grid=grid))
