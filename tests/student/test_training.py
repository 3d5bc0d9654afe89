"""Stage two through its command: what it records and leaves on disk, what it refuses."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.skipped import record_skipped
from common.training.recorder import read_metrics
from tests.shared.reduced import STREET_GRID, dump, fail, file_of, saved, succeed, train

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
    assert "delete the file and run polar-distill dump again" in message


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
