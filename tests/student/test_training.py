"""Stage two through its command: the losses it sees, what it leaves on disk, what it refuses."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.scans.dataset import Dataset, epoch_order
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, View, ViewPolicy, draw_view
from common.targets.store import TargetStore
from common.targets.store.skipped import record_skipped
from common.training.recorder import read_metrics
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.distillation.terms import teacher_layers
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentData, choose_view
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.scans import choose_scans
from stage2_train_student.training.step import losses, targets_of
from tests.golden.golden_files import scans_folder
from tests.shared.reduced import (
    NARROW,
    REAL_GRID,
    STREET_GRID,
    dump,
    fail,
    file_of,
    one_thread,
    reduced_experiment,
    saved,
    succeed,
    train,
)

CPU = torch.device("cpu")
VPD_TERMS = {"vpd", *(f"vpd.{layer}" for layer in ("down1c", "down3c", "up4e", "up2e"))}
SEGMENTATION = {"cross_entropy", "lovasz"}
TERMS = {
    "baseline": SEGMENTATION,
    "vpd": SEGMENTATION | VPD_TERMS,
    "lwd": SEGMENTATION | {"lwd"},
    "logit": SEGMENTATION | {"logit"},
    "full": SEGMENTATION | VPD_TERMS | {"lwd", "logit"},
}
ALONG = {"kind", "step", "epoch", "seconds", "waited", "gradient_norm", "learning_rate"}

# Cached targets and the teacher in the loop


def data_of(settings: ExperimentSettings, root: Path, store: TargetStore | None = None) -> StudentData:
    return student_data(settings, Dataset.open(root, load_label_map(settings.dataset)), TargetSource(store=store))


def check_cached_losses(
    root: Path,
    cache: Path,
    teacher_file: Path,
    grid: tuple[int, int, int],
    options: Sequence[str] = (),
    augmentation: Sequence[str] = (),
) -> list[View]:
    """Clouds of the same bits, and losses within 1e-5, from a cache of three views and from the teacher in the loop.

    Returns:
        the views that were seen.
    """
    store = TargetStore.open(cache)
    cached = reduced_experiment(grid, NARROW, *options)
    online = reduced_experiment(grid, NARROW, "targets=online", "augmentation.count=3", *options, *augmentation)
    label_map = load_label_map(cached.dataset)
    scans = Dataset.open(root, label_map).select(["train"]).scans[:2]
    teacher, layers = load_teacher(teacher_file, CPU), teacher_layers(cached.distillation)
    state = new_state(cached, label_map, TargetSource(channels=teacher.channels), CPU)
    weights = torch.from_numpy(label_map.class_weights())
    seen: list[View] = []
    for epoch in (0, 3):
        views = [(scan, choose_view(3, 0, scan, epoch)) for scan in scans]
        seen += [store.identity.views.view(scan, view, grid[1]) for scan, view in views]
        from_cache = data_of(cached, root, store).load_batch(scans, epoch)
        from_scans = data_of(online, root).load_batch(scans, epoch)
        assert from_scans.targets == []
        for name, value in vars(from_scans.batch).items():
            other = getattr(from_cache.batch, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
        terms = []
        for batch, targets in (
            (from_cache.batch, targets_of(from_cache, from_cache.batch, None, CPU)),
            (from_scans.batch, teacher.targets(from_scans.batch, layers)),
        ):
            torch.manual_seed(epoch)
            with torch.no_grad(), one_thread():
                loss, parts = losses(state.networks.student, state.networks.distillation, batch, targets, weights)
            terms.append({"loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        assert terms[0].keys() == TERMS["full"] | {"loss"}
        assert min(terms[0].values()) > 0
        for name, value in terms[0].items():
            assert value == pytest.approx(terms[1][name], rel=1e-5), name
    return seen


def test_losses_from_the_cache_are_those_with_the_teacher_in_the_loop(real_cache, reduced_teacher):
    seen = check_cached_losses(scans_folder(), real_cache, reduced_teacher, REAL_GRID)
    assert len({view.rotation for view in seen} - {0.0}) > 1


@pytest.mark.parametrize("seed", [0, 1])
def test_so_they_are_for_rotations_flips_and_scales_drawn_at_random(streets, reduced_teacher, tmp_path, seed):
    drawn = {"scale": 0.1, "translate": 0.2, "seed": seed}
    views = ("views.count=3", *(f"views.policy.{name}={value}" for name, value in drawn.items()))
    succeed(dump(streets, reduced_teacher, tmp_path / "cache", STREET_GRID, "splits=[train]", *views))
    policy = [f"augmentation.policy.{name}={value}" for name, value in drawn.items()]
    # A new student agrees with this teacher within the usual threshold everywhere on the made-up streets.
    options = ["distillation.logit_threshold=null"]
    seen = check_cached_losses(streets, tmp_path / "cache", reduced_teacher, STREET_GRID, options, policy)
    moved = [view for view in seen if view != IDENTITY]
    assert len(moved) > 1
    for view in moved:
        assert 0 < abs(view.scale - 1) < 0.1
        assert view.rotation > 0
        assert view.translation != (0, 0, 0)
    assert any(view.flip_x or view.flip_y for view in moved)


def test_the_commands_agree_on_cached_and_online_targets(streets, street_cache, reduced_teacher, runs):
    options = ("steps=1", "validate_on=[]", "batch_size=5")
    succeed(train(streets, street_cache, runs / "cache", *options))
    online = ("targets=online", "augmentation.count=2")
    succeed(train(streets, None, runs / "online", *options, *online, options=("--teacher", reduced_teacher)))
    cached, live = (read_metrics(runs / name, "train")[0] for name in ("cache", "online"))
    for name in (*TERMS["full"], "loss"):
        assert cached[name] == pytest.approx(live[name], rel=1e-5, abs=1e-9), name


def test_each_epoch_replays_the_stored_views(streets, street_cache, semantic_kitti):
    settings = reduced_experiment(STREET_GRID)
    data = data_of(settings, streets, TargetStore.open(street_cache))
    scan = ScanId("00", "000001")
    seen = {choose_view(2, settings.seed, scan, epoch) for epoch in range(8)}
    assert seen == {0, 1}
    clouds = {data.load(scan, epoch)[0].point_features.tobytes() for epoch in range(8)}
    assert len(clouds) == 2


def test_fresh_views_are_drawn_by_the_seed_of_the_run_and_those_of_a_set_are_not(streets):
    """The spread over seeds has to include what is drawn at random; a set of views is the same as in a store."""
    scans = [ScanId("00", f"{frame:06d}") for frame in range(5)]

    def views(*overrides: str) -> list[View]:
        data = data_of(reduced_experiment(STREET_GRID, *overrides, name="baseline"), streets)
        return [data.drawn_view(scan, epoch) for scan in scans for epoch in range(4)]

    fresh = [views("augmentation.count=null", f"seed={seed}") for seed in range(3)]
    rotations = {view.rotation for drawn in fresh for view in drawn}
    assert len(rotations) == 3 * len(fresh[0])
    assert fresh[1] == views("augmentation.count=null", "seed=1")
    # Such is the policy's own seed, and that of runs begun when the seed of a run did not count.
    assert fresh[0] == [draw_view(ViewPolicy(), scan, 1 + epoch) for scan in scans for epoch in range(4)]
    for seed in range(3):
        chosen = views("augmentation.count=3", f"seed={seed}")
        of_set = [[draw_view(ViewPolicy(), scan, index) for index in range(3)] for scan in scans for _ in range(4)]
        assert all(view in known for view, known in zip(chosen, of_set, strict=True))


def test_an_epoch_visits_every_scan_once_in_an_order_of_its_own():
    scans = [ScanId("00", f"{frame:06d}") for frame in range(11)]
    epochs = [epoch_order(scans, 3, 0, epoch) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [3, 3, 3, 2]
        assert sorted(scan for batch in batches for scan in batch) == scans
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(scans, 3, 0, 0)
    assert epochs[0] != epoch_order(scans, 3, 1, 0)


# Every experiment


@pytest.mark.parametrize("name", TERMS)
def test_every_experiment_trains_validates_and_records_its_terms(streets, street_cache, runs, name):
    run = runs / name
    output = succeed(train(streets, street_cache, run, "batch_size=5", "epochs=2", "steps=2", name=name))
    assert "best mIoU" in output
    records = read_metrics(run, "train")
    assert [line["step"] for line in records] == [1, 2]
    for line in records:
        assert line.keys() == ALONG | TERMS[name] | {"loss"}
        assert all(math.isfinite(line[term]) for term in (*TERMS[name], "loss"))
        weights = {"cross_entropy": 1, "lovasz": 1, "logit": 1, "vpd": 2, "lwd": 2}
        total = sum(weights[term] * line[term] for term in TERMS[name] if term in weights)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    validations = read_metrics(run, "validation")
    assert [line["epoch"] for line in validations] == [1, 2]
    assert all(0 <= line["miou"] <= 1 for line in validations)
    for file in ("settings.yaml", "environment.json", "last.pt", "student_last.pt", "student_best.pt"):
        assert (run / file).is_file(), file
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    wanted = {f"train/{term}" for term in TERMS[name]} | {"train/loss", "validation/miou"}
    assert wanted <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2]


def test_real_scans_train(real_cache, runs):
    """At the published width of the U-Net."""
    options = (f"grid.shape={list(REAL_GRID)}", "student.width=64", "steps=1", "batch_size=1", "train=[train]")
    output = succeed(train(scans_folder(), real_cache, runs / "real", *options))
    assert "no validation" in output
    [line] = read_metrics(runs / "real", "train")
    assert all(math.isfinite(line[term]) and line[term] > 0 for term in TERMS["full"])


def test_scans_without_labels_teach_by_distillation_alone(streets, street_cache, runs):
    options = ('train=["11"]', "validate_on=[]", "steps=2", "distillation.logit_threshold=null")
    succeed(train(streets, street_cache, runs / "unlabelled", *options))
    for line in read_metrics(runs / "unlabelled", "train"):
        assert line["cross_entropy"] == line["lovasz"] == line["lwd"] == 0
        assert line["vpd"] > 0
        assert line["logit"] > 0
        assert math.isfinite(line["loss"])
    weights = saved(runs / "unlabelled")["student"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_labelled_and_unlabelled_scans_train_together(streets, street_cache, runs):
    options = ('train=["00", "11"]', "validate_on=[]", "batch_size=7", "steps=1")
    succeed(train(streets, street_cache, runs / "both", *options))
    [line] = read_metrics(runs / "both", "train")
    assert all(math.isfinite(line[term]) for term in TERMS["full"])
    assert line["cross_entropy"] > 0


# Refused before the first step


def refused(data: Path, cache: Path | None, run: Path, *overrides: str, **options: Any) -> str:
    """Why a training run was refused; it must not have begun."""
    message = fail(train(data, cache, run, *overrides, **options))
    assert not (run / "metrics.jsonl").exists()
    return message


def test_a_store_of_another_grid_or_volume_is_refused_naming_the_differences(streets, street_cache, runs):
    message = refused(streets, street_cache, runs / "other", "grid.shape=[48, 48, 16]", "grid.volume=cylinder3d")
    assert "does not fit the experiment" in message
    assert "grid.shape: the store has [48, 40, 16], this run has [48, 48, 16]" in message
    for name in ("grid.minimum", "grid.maximum"):
        assert f"{name}: the store has" in message


def test_a_store_without_a_layer_that_the_experiment_needs_is_refused(streets, reduced_teacher, tmp_path, runs):
    cache = tmp_path / "cache"
    succeed(dump(streets, reduced_teacher, cache, STREET_GRID, "splits=[train]", "layers=[up0e]"))
    message = refused(streets, cache, runs / "vpd", name="vpd")
    assert "the experiment needs ['down1c', 'down3c', 'up4e', 'up2e'], the store has ['up0e']" in message
    succeed(train(streets, cache, runs / "lwd", "steps=1", "validate_on=[]", name="lwd"))


def test_scans_that_the_dump_skipped_are_left_out_and_named(streets, street_cache, tmp_path, runs):
    cache = shutil.copytree(street_cache, tmp_path / "cache")
    store = TargetStore.open(cache)
    bad, other = ScanId("00", "000002"), ScanId("00", "000004")
    file_of(store, bad, 1).unlink()
    record_skipped(store, bad, 1, "the scan is empty")
    options = ("epochs=1", "batch_size=1", "validate_on=[]")
    output = succeed(train(streets, cache, runs / "some", *options))
    assert "training without 1 of 5 scans, which the dump skipped; the first is 00/000002: the scan is empty" in output
    assert len(read_metrics(runs / "some", "train")) == 4

    file_of(store, other, 0).unlink()
    message = refused(streets, cache, runs / "missing")
    assert "1 of 5 training scans have no complete targets, the first is 00/000004" in message

    for scan, view in store.finished():
        if scan.sequence == "00":
            file_of(store, scan, view).unlink()
            record_skipped(store, scan, view, "the scan is empty")
    record_skipped(store, other, 0, "it is dark")
    message = refused(streets, cache, runs / "none")
    assert "the dump could use none of the 5 training scans; the reason for 00/000000: the scan is empty" in message


def test_missing_targets_are_counted_and_the_first_is_named(streets, street_cache, tmp_path, runs):
    cache = shutil.copytree(street_cache, tmp_path / "cache")
    store = TargetStore.open(cache)
    file_of(store, ScanId("00", "000002"), 1).unlink()
    file_of(store, ScanId("00", "000004"), 0).unlink()
    message = refused(streets, cache, runs / "missing")
    assert "2 of 5 training scans have no complete targets, the first is 00/000002" in message


def test_damaged_targets_stop_the_run_naming_the_file(streets, street_cache, tmp_path, runs):
    cache = shutil.copytree(street_cache, tmp_path / "cache")
    store = TargetStore.open(cache)
    for view in (0, 1):
        path = file_of(store, ScanId("00", "000003"), view)
        path.write_bytes(path.read_bytes()[:-100])
    message = fail(train(streets, cache, runs / "damaged", "batch_size=1", "epochs=1", "validate_on=[]"))
    assert "000003.v" in message
    assert "delete the file and run make dump-teacher again" in message


def test_a_missing_store_is_named(streets, tmp_path, runs):
    assert "no target store here" in refused(streets, tmp_path / "nowhere", runs / "none")


def test_online_targets_need_a_teacher(streets, runs):
    assert "needs the teacher's checkpoint" in refused(streets, None, runs / "online", "targets=online")


def test_validation_scans_without_labels_are_refused_before_an_epoch_is_spent(streets, street_cache, runs):
    message = refused(streets, street_cache, runs / "unlabelled", 'validate_on=["11"]')
    assert "2 of 2 scans have no labels, the first is 11/000000" in message


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("augmentation.count=2", "the views are those of the store"),
        ("targets=none", "targets: none has no teacher"),
        ("learning_rate=1", "learning_rate: unknown key"),
        ("student.point_chanels=8", "did you mean 'point_channels'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(streets, street_cache, runs, override, reason):
    assert reason in refused(streets, street_cache, runs / "wrong", override)


# Labels for some sequences, targets for more


def test_scans_of_other_sequences_join_the_distillation_without_their_labels(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00', '08']", "labels=['00']")
    data = data_of(settings, streets)
    assert data.load(ScanId("00", "000000"), 0)[0].voxel_labels.any()
    assert not data.load(ScanId("08", "000000"), 0)[0].voxel_labels.any()


def test_labels_must_be_those_of_training_scans(streets, street_cache, runs):
    message = fail(train(streets, street_cache, runs / "a", "labels=['08']"))
    assert "none of the training scans (train) is in 08" in message


def test_without_a_teacher_scans_without_labels_are_refused(streets, runs):
    message = fail(train(streets, None, runs / "a", "labels=['00']", name="baseline"))
    assert "a scan without labels teaches nothing" in message


def test_labels_of_every_so_many_th_scan_only(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00']", "label_every=2")
    data, scans = data_of(settings, streets), [ScanId("00", f"{frame:06d}") for frame in range(3)]
    assert [bool(data.load(scan, 0)[0].voxel_labels.any()) for scan in scans] == [True, False, True]
    named = data_of(reduced_experiment(STREET_GRID, "train=['00']", "label_every=2", "labels=['00']"), streets)
    assert named.labelled == data.labelled


def test_a_choice_of_labels_that_finds_none_is_refused(tmp_path, street_cache, streets, runs):
    data = tmp_path / "dataset"
    shutil.copytree(streets, data)
    for frame in (0, 3):
        (data / f"sequences/00/labels/{frame:06d}.label").unlink()
    message = fail(train(data, street_cache, runs / "a", "train=['00']", "label_every=3"))
    assert "none of the 2 scans of 00 (one in 3) has a label file" in message


def test_without_a_teacher_only_scans_whose_labels_are_used_are_trained_on(streets):
    settings = reduced_experiment(STREET_GRID, "train=['00', '08']", "label_every=2", name="baseline")
    chosen = choose_scans(settings, Dataset.open(streets, load_label_map(settings.dataset))).train
    assert [str(scan) for scan in chosen] == ["00/000000", "00/000002", "00/000004", "08/000000"]
