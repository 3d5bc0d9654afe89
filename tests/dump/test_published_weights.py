"""Published Cylinder3D checkpoints load completely and frozen, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.base.errors import CheckpointError
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import SPARSE, declared_kernel, from_published, to_published
from common.scans.polar_grid import PolarGrid, voxelise
from common.scans.scan_batch import batch_scans
from stage1_dump_teacher.teachers.cylinder3d import Cylinder3DTeacher, load_teacher
from tests.golden.golden_files import golden_weights
from tests.shared.dataset_writer import street_scan
from tests.shared.reduced import STREET_GRID, one_thread

Weights = dict[str, torch.Tensor]
CPU = torch.device("cpu")
DEAD = f"{SPARSE}upBlock2.conv3.weight"
"""A 3x3x3 weight of which only the first nine slices act."""


@pytest.fixture(scope="module")
def published() -> Weights:
    """The golden reduced teacher's weights; copy to change."""
    return golden_weights("teacher_reduced")


@pytest.fixture(scope="module")
def teacher(reduced_teacher) -> Cylinder3DTeacher:
    return load_teacher(reduced_teacher, CPU)


@pytest.fixture
def load(tmp_path) -> Callable[..., Cylinder3DTeacher]:
    """Save something as a checkpoint and load it."""

    def save_and_load(content: object, name: str = "teacher.pt") -> Cylinder3DTeacher:
        torch.save(content, tmp_path / name)
        return load_teacher(tmp_path / name, CPU)

    return save_and_load


def equal(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def spoilt(weights: Weights, name: str, value: float, where: object = ...) -> Weights:
    """A copy with some values of one tensor replaced."""
    tensor = weights[name].clone()
    tensor[where] = value
    return weights | {name: tensor}


def test_the_teacher_is_frozen_in_eval_mode_and_takes_no_gradient(teacher):
    assert not teacher.model.training
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_widths_are_read_off_the_checkpoint(teacher):
    assert teacher.model.widths == TeacherWidths(point_channels=64, voxel_channels=8, base=8, classes=20)


def test_every_tensor_survives_the_round_trip_but_for_dead_slices(published, teacher):
    back = to_published(teacher.model)
    assert back.keys() == published.keys()
    partly_dead = [f"{SPARSE}upBlock{block}.conv3.weight" for block in range(4)]
    assert [name for name in back if not torch.equal(back[name], published[name])] == partly_dead
    for name in partly_dead:
        assert torch.equal(back[name][0], published[name][0])
        assert back[name].shape == published[name].shape
        assert not back[name][1:].any()


def test_from_published_undoes_to_published(teacher):
    weights = from_published(to_published(teacher.model), teacher.model, "the model itself")
    assert equal(weights, teacher.model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"model_state_dict": weights, "epoch": 7},
        lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": weights},
        lambda weights: {name: weights[name] for name in sorted(weights, reverse=True)},
    ],
    ids=["module prefix", "model_state_dict", "state_dict and prefix", "model", "another order"],
)
def test_wrappers_and_prefixes_change_nothing(load, published, teacher, wrap):
    loaded = load(wrap(published))
    assert loaded.hash == teacher.hash
    assert equal(loaded.model.state_dict(), teacher.model.state_dict())


def below(prefix: str, weights: Weights) -> Weights:
    """The same weights as a module's of another module."""
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "entry", "prefix"),
    [
        (lambda weights: below("model.", weights), "", "model."),
        (lambda weights: below("module.module.", weights), "", "module.module."),
        (lambda weights: {"net": weights}, "net", ""),
        (lambda weights: {"epoch": 3, "network": below("_orig_mod.", weights)}, "network", "_orig_mod."),
        (lambda weights: {"net": weights, "criterion": {"weight": torch.ones(20)}, "lr": 0.1}, "net", ""),
    ],
)
def test_weights_of_forks_load_where_they_are_complete_and_it_is_said(
    load, published, teacher, capsys, wrap, entry, prefix
):
    assert load(wrap(published)).hash == teacher.hash
    [said] = [line for line in capsys.readouterr().err.splitlines() if "all 274 weights" in line]
    assert (f"in the entry '{entry}'" in said) == bool(entry)
    assert (f"below the prefix '{prefix}'" in said) == bool(prefix)


def test_of_two_complete_sets_the_usual_entry_is_taken_and_without_one_none(load, published, teacher, capsys):
    other = spoilt(published, DEAD, 0.5, (0, 0, 0, 0, 0))
    assert load({"ema": other, "state_dict": published}).hash == teacher.hash
    assert "'state_dict' is taken, not ema" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="several entries hold all weights: ema, net"):
        load({"ema": other, "net": published})


def test_weights_of_forks_that_are_not_complete_are_refused(load, published):
    name = f"{SPARSE}logits.bias"
    without = {key: value for key, value in published.items() if key != name}
    with pytest.raises(CheckpointError, match=r"missing in the file \(1\): .*logits\.bias"):
        load({"net": below("model.", without)})
    with pytest.raises(CheckpointError, match=r"unknown to the model \(1\): criterion\.weight"):
        load(below("model.", published) | {"criterion.weight": torch.ones(20)})
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        load(below("model.", without) | published)


def test_names_of_mmdetection3d_are_recognised(load):
    names = ("voxel_encoder.pre_norm.weight", "backbone.down_context.conv0_0.0.weight", "decode_head.conv_seg.weight")
    with pytest.raises(CheckpointError, match="mmdetection3d uses such names") as caught:
        load({"meta": {"epoch": 1}, "state_dict": {name: torch.ones(3) for name in names}})
    assert "found: 3 tensors in the entry 'state_dict', such as voxel_encoder.pre_norm.weight" in caught.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to_sparse(), r"logits\.bias \(sparse_coo\)"),
        (lambda value: value.to(torch.complex64), r"logits\.bias \(complex\)"),
        (lambda value: value.to("meta"), r"logits\.bias \(on meta, without values\)"),
        (lambda value: (value * 100).to(torch.int8), r"no floating-point numbers: .*logits\.bias: torch\.int8"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_named(load, published, change, words):
    name = f"{SPARSE}logits.bias"
    with pytest.raises(CheckpointError, match=words):
        load(published | {name: change(published[name])})


def test_a_teacher_that_is_text_is_named(tmp_path):
    (tmp_path / "teacher.pt").write_text("see the other folder\n")
    with pytest.raises(CheckpointError, match=r"teacher\.pt: no checkpoint; the file is plain text"):
        load_teacher(tmp_path / "teacher.pt", CPU)


def test_dead_slices_may_hold_anything_and_do_not_count(load, published, teacher):
    weights = published
    for block in range(4):
        name = f"{SPARSE}upBlock{block}.conv3.weight"
        weights = spoilt(weights, name, float("nan"), slice(1, 3))
    loaded = load(weights)
    assert loaded.hash == teacher.hash
    assert equal(loaded.model.state_dict(), teacher.model.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        (DEAD, (0, 2, 2)),
        (f"{SPARSE}upBlock0.trans_dilao.weight", (2, 2, 2)),
        (f"{SPARSE}logits.bias", 3),
        ("cylinder_3d_generator.PPmodel.0.running_var", 8),
    ],
)
def test_a_value_that_acts_and_is_not_finite_is_refused_naming_the_tensor(load, published, name, where, value):
    with pytest.raises(CheckpointError, match="NaN or infinity in") as caught:
        load(spoilt(published, name, value, where))
    assert name in caught.value.message
    assert "teacher.pt" in caught.value.message


def test_an_acting_weight_changes_the_hash(load, published, teacher):
    assert load(spoilt(published, DEAD, 0.5, (0, 0, 0, 0, 0))).hash != teacher.hash


def test_every_missing_tensor_is_named(published, teacher):
    for name in published:
        rest = {key: value for key, value in published.items() if key != name}
        with pytest.raises(CheckpointError) as caught:
            from_published(rest, teacher.model, "teacher.pt")
        assert f"missing in the file (1): {name}" in caught.value.message


def test_a_tensor_left_over_is_named(load, published):
    with pytest.raises(CheckpointError, match=r"unknown to the model \(1\): .*\.resBlock6\.conv1\.weight"):
        load(published | {f"{SPARSE}resBlock6.conv1.weight": torch.zeros(3, 1, 3, 8, 8)})


def test_every_tensor_of_another_shape_is_named_with_both_shapes(published, teacher):
    for name, value in published.items():
        wrong = torch.zeros(*value.shape, 2)
        with pytest.raises(CheckpointError, match=r"shapes differ \(1\)") as caught:
            from_published(published | {name: wrong}, teacher.model, "teacher.pt")
        assert f"{name}: {tuple(wrong.shape)} in the file, {tuple(value.shape)} in the model" in caught.value.message


@pytest.mark.parametrize(
    "name",
    [f"{SPARSE}downCntx.conv1.weight", f"{SPARSE}logits.weight", "cylinder_3d_generator.fea_compression.0.weight"],
)
@pytest.mark.parametrize("change", [lambda value: value.reshape(-1), lambda value: value[0], lambda value: value[None]])
def test_a_tensor_that_tells_the_widths_is_refused_in_another_shape(load, published, name, change):
    with pytest.raises(CheckpointError, match="shape") as caught:
        load(published | {name: change(published[name]).clone()})
    assert name in caught.value.message


def test_a_naive_port_with_declared_kernels_swapped_is_refused(load, published):
    """Same number of values, kernel axes in another order."""
    name = f"{SPARSE}resBlock2.conv1.weight"
    with pytest.raises(CheckpointError, match=r"\(3, 3, 1, 8, 16\) in the file, \(3, 1, 3, 8, 16\) in the model"):
        load(published | {name: published[name].permute(0, 2, 1, 3, 4).contiguous()})


def test_student_weights_are_refused_as_not_a_teacher(load):
    with pytest.raises(CheckpointError, match=r"not a Cylinder3D checkpoint; nothing was loaded") as caught:
        load(golden_weights("student_reduced"))
    assert "found: 163 tensors, such as student.BEV_model." in caught.value.message
    assert "would load: exactly 274 tensors, such as cylinder_3d_generator." in caught.value.message


def test_spconv_2_weights_are_refused_saying_why(load, published):
    weights = {
        name: value if declared_kernel(name) is None else value.permute(4, 0, 1, 2, 3).contiguous()
        for name, value in published.items()
    }
    with pytest.raises(CheckpointError, match=r"spconv 1\.x layout is \(1, 3, 3, in, out\)"):
        load(weights)


@pytest.mark.parametrize(
    "widths",
    [
        TeacherWidths(point_channels=128, voxel_channels=32, base=4, classes=20),
        TeacherWidths(point_channels=32, voxel_channels=4, base=8, classes=7),
    ],
)
def test_other_widths_load_and_run(load, tmp_path, widths):
    torch.manual_seed(3)
    model = Cylinder3D(widths, on_cpu=True).eval()
    loaded = load(to_published(model))
    assert loaded.model.widths == widths
    assert equal(loaded.model.state_dict(), model.state_dict())
    batch = batch_scans([voxelise(street_scan(300)[0], PolarGrid.named("polarnet", STREET_GRID))], STREET_GRID)
    with one_thread():
        outputs = loaded.model(batch, ("down1c", "up0e"))
    assert outputs.logits.shape == (len(batch.voxels), widths.classes)
    assert torch.isfinite(outputs.logits).all()
    assert outputs.layers["down1c"].features.shape[1] == 2 * widths.base
    assert not outputs.logits.requires_grad


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*missing\.pt"):
        load_teacher(Path(tmp_path / "missing.pt"), CPU)
