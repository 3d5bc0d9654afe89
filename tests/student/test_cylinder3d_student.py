"""Cylinder3D as a student, and PVKD's pair through the commands."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.base.errors import CheckpointError, SettingsError, TrainingError
from common.networks.cylinder3d import Cylinder3D, TeacherWidths
from common.networks.published_weights import to_published
from common.networks.sparse import sparse
from common.training.recorder import read_metrics
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.__main__ import main as stage_two
from stage2_train_student.students.cylinder3d import Cylinder3DStudent
from stage2_train_student.students.student import StudentSettings
from stage2_train_student.training.runs import load_student
from tests.golden.golden_files import scans_folder
from tests.shared.reduced import (
    REAL_GRID,
    STREET_GRID,
    command,
    dump,
    fail,
    one_thread,
    reduced_experiment,
    saved,
    succeed,
    train,
)
from tests.student.test_polarnet import small_batch

CPU = torch.device("cpu")
TERMS = ("point_output", "voxel_output", "point_affinity", "voxel_affinity")
WEIGHTS = dict(zip(("cross_entropy", "lovasz", *TERMS), (1, 1, 0.1, 0.15, 0.15, 0.25), strict=True))
HALF = "student.options={base: 4, point_channels: 32, voxel_channels: 4}"
SMALL_BLOCKS = "distillation.supervoxels={size: [16, 16, 4], count: 3, points: 64, voxels: 32}"
SMALL = (HALF, SMALL_BLOCKS)
FROM_UP0E = "distillation.pairs=[{term: %s, teacher: up0e, student: up0e}, {term: %s, teacher: up0e, student: up0e}]"
STREETS = (*SMALL, "grid.volume=polarnet", FROM_UP0E % TERMS[2:], "validate_on=[]")
"""The layer that a dump of the usual layers has for both affinities."""


def checked_total(line: dict) -> None:
    """All terms are there, finite and positive, and add up to the loss."""
    assert all(math.isfinite(line[name]) and line[name] > 0 for name in WEIGHTS)
    assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in WEIGHTS.items()), rel=1e-5)


def test_pvkd_trains_on_real_scans_and_its_student_can_teach(reduced_teacher, tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    layers = ("grid.volume=cylinder3d", "layers=[vox, up1e]", "voxel_features=true", "splits=[train]")
    succeed(dump(scans_folder(), reduced_teacher, cache, REAL_GRID, *layers))
    options = (f"grid.shape={list(REAL_GRID)}", *SMALL, "batch_size=1", "steps=1")
    succeed(train(scans_folder(), cache, run, *options, name="pvkd"))
    [line] = read_metrics(run, "train")
    checked_total(line)
    teacher = load_teacher(run / "student_last.pt", CPU)
    assert teacher.model.widths == TeacherWidths(point_channels=32, voxel_channels=4, base=4, classes=20)


def test_terms_from_the_cache_are_those_with_the_teacher_in_the_loop(streets, street_cache, reduced_teacher, runs):
    options = (*STREETS, "steps=1", "batch_size=5")
    succeed(train(streets, street_cache, runs / "cache", *options, name="pvkd"))
    online = ("targets=online", "augmentation.count=2")
    teacher = {"options": ("--teacher", reduced_teacher)}
    succeed(train(streets, None, runs / "online", *options, *online, name="pvkd", **teacher))
    cached, live = (read_metrics(runs / name, "train")[0] for name in ("cache", "online"))
    checked_total(cached)
    for name in (*WEIGHTS, "loss"):
        assert cached[name] == pytest.approx(live[name], rel=1e-5), name


def test_resuming_draws_the_same_blocks_and_the_student_is_evaluated(streets, street_cache, runs):
    options = (*STREETS, "batch_size=2", "epochs=1", "averaging=0.9")
    straight, halted = runs / "straight", runs / "halted"
    succeed(train(streets, street_cache, straight, *options, name="pvkd"))
    succeed(train(streets, street_cache, halted, *options, "steps=1", name="pvkd"))
    succeed(train(streets, street_cache, halted, *options, name="pvkd", options=("--resume",)))
    one, other = saved(straight)["student"], saved(halted)["student"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    evaluated = ("evaluate", "--data", streets, "--run", halted, "--split", "train", "--device", "cpu")
    assert "mIoU" in succeed(command(stage_two, *evaluated))


def test_without_layers_a_student_learns_from_logits(streets, street_cache, runs):
    options = ("student.network=cylinder3d", HALF, "validate_on=[]", "steps=1", "batch_size=5")
    succeed(train(streets, street_cache, runs / "logit", *options, "distillation.logit_threshold=null", name="logit"))
    [line] = read_metrics(runs / "logit", "train")
    assert line["logit"] > 0
    message = fail(train(streets, street_cache, runs / "full", *options))
    assert "the student has no layer x2 to distil into (it has: none)" in message
    assert "the logit term needs no layer" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("views=anchors",), "do not serve point_affinity, voxel_affinity; set views=replay"),
        (("student.network=polarnet",), "the student has no voxel features of a layer up0e (it has: none)"),
        (("compile=true",), "cylinder3d cannot be compiled"),
        (("precision=bfloat16",), "cylinder3d computes in float32; set precision=float32"),
        (("student.options={bse: 4}",), "did you mean 'base'"),
        (("student.options={base: 0}",), "student.options"),
        (("distillation.pairs=[{term: affinity, teacher: a, student: b}]",), "no term 'affinity' is in use; choose"),
        (("distillation.pairs=[{teacher: a, student: b}, {teacher: a, student: c}]",), "vpd has two pairs with"),
        (("distillation.support=dense", "distillation.logit=1"), "needs a student that classifies pillars"),
    ],
)
def test_what_cannot_work_is_refused(streets, street_cache, runs, changes, message):
    options = (*STREETS, "steps=1", *changes)
    assert message in fail(train(streets, street_cache, runs / "refused", *options, name="pvkd"))


def test_stores_without_voxel_features_or_layers_are_refused_with_the_next_step(
    streets, street_cache, reduced_teacher, runs, tmp_path
):
    message = fail(train(streets, street_cache, runs / "layers", *SMALL, "grid.volume=polarnet", name="pvkd"))
    assert "layers: the experiment needs ['vox', 'up1e'], the store has" in message
    cache = tmp_path / "cache"
    succeed(dump(streets, reduced_teacher, cache, STREET_GRID, 'splits=["08"]', "layers=[up0e]"))
    message = fail(train(streets, cache, runs / "features", *STREETS, 'train=["08"]', name="pvkd"))
    assert "keeps no voxel features, which point_affinity, voxel_affinity read" in message
    assert "--set profile=full --set layers=[up0e]" in message


# Published checkpoints


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint in the published layout whose sparse network takes 32 channels, as those of PVKD do."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "cyl_sem.pt"
    model = Cylinder3D(TeacherWidths(point_channels=64, voxel_channels=32, base=4), on_cpu=True)
    torch.save({f"module.{name}": value for name, value in to_published(model).items()}, path)
    return path


def test_published_checkpoints_load_as_teachers_and_as_students(published, tmp_path):
    teacher = load_teacher(published, CPU)
    assert teacher.model.widths.voxel_channels == 32
    options = "student.options={base: 4, point_channels: 64, voxel_channels: 32}"
    student, _ = load_student(reduced_experiment(STREET_GRID, options, name="pvkd"), published, CPU)
    batch = small_batch(points=200)
    batch = type(batch)(**{**vars(batch), "point_features": batch.point_features.float()})
    with torch.no_grad(), one_thread():
        logits, outputs = teacher.targets(batch, ()).logits, student(batch)
    torch.testing.assert_close(outputs.voxel_logits, logits, rtol=0.0, atol=0.0)
    assert outputs.voxel_layers == {}
    torch.save(student.published(), tmp_path / "again.pt")
    assert load_teacher(tmp_path / "again.pt", CPU).hash == teacher.hash


def test_a_student_of_other_channels_refuses_them_by_name(published, tmp_path):
    settings = reduced_experiment(STREET_GRID, name="pvkd")
    with pytest.raises(CheckpointError) as caught:
        load_student(settings, published, CPU)
    message = caught.value.message
    assert "point_channels: 64 in the file, 128 in the settings; voxel_channels: 32 in the file, 16 in" in message
    assert "Set student.options={base: 4, point_channels: 64, voxel_channels: 32}" in message
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        load_student(settings, tmp_path / "other.pt", CPU)
    weights = torch.load(published)
    weights["module.cylinder_3d_spconv_seg.upBlock1.bn2.bias"] = torch.ones(3)
    torch.save(weights, tmp_path / "damaged.pt")
    fitting = reduced_experiment(
        STREET_GRID, "student.options={base: 4, point_channels: 64, voxel_channels: 32}", name="pvkd"
    )
    with pytest.raises(CheckpointError, match=r"upBlock1\.bn2\.bias: \(3,\) in the file, \(32,\) in the model"):
        load_student(fitting, tmp_path / "damaged.pt", CPU)


def test_a_batch_without_a_scan_is_refused():
    student = Cylinder3DStudent.build(StudentSettings(options={"base": 2}), STREET_GRID, 20)
    with pytest.raises(TrainingError, match="needs a scan in every process"):
        student(small_batch(points=20).without_scans())


def test_the_half_of_pvkds_network_has_half_the_channels():
    student = Cylinder3DStudent.build(StudentSettings(network="cylinder3d"), STREET_GRID, 20)
    whole = TeacherWidths(point_channels=256, voxel_channels=32, base=32)
    own = student.network.widths
    assert [2 * own.point_channels, 2 * own.voxel_channels, 2 * own.base] == [256, 32, 32]
    assert {name: 2 * channels for name, channels in own.layers.items()} == whole.layers


def test_without_spconv_it_is_said_what_needs_it(monkeypatch):
    for name in ("spconv", "spconv.algo", "spconv.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    sparse.cache_clear()
    with pytest.raises(SettingsError, match="Cylinder3D needs spconv, which cannot be imported"):
        Cylinder3DStudent.build(StudentSettings(network="cylinder3d"), STREET_GRID, 20)


def test_threads_share_one_network():
    """The bias that spconv is not given stays the network's own meanwhile."""
    widths, batch = TeacherWidths(point_channels=32, voxel_channels=4, base=4, classes=5), small_batch()
    network, batch = Cylinder3D(widths, on_cpu=True).eval(), replace(batch, point_features=batch.point_features.float())
    with torch.inference_mode(), one_thread():
        expected = network(batch).logits
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: network(batch).logits, range(40)))
    assert all(torch.equal(logits, expected) for logits in found)
    assert network.cylinder_3d_spconv_seg.logits.bias is not None
