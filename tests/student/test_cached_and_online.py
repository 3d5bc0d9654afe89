"""Cached targets teach what the teacher in the loop teaches, and real scans train."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.scans.view import IDENTITY, View
from common.targets.store import TargetStore
from common.training.recorder import read_metrics
from stage1_dump_teacher.teachers.cylinder3d import load_teacher
from stage2_train_student.distillation.terms import teacher_layers
from stage2_train_student.training.data import choose_view
from stage2_train_student.training.experiment import TargetSource, new_state
from stage2_train_student.training.step import losses, targets_of
from tests.golden.golden_files import scans_folder
from tests.shared.reduced import NARROW, REAL_GRID, STREET_GRID, dump, one_thread, reduced_experiment, succeed, train
from tests.student.test_student_data import data_of

CPU = torch.device("cpu")
TERMS = {"cross_entropy", "lovasz", "vpd", "vpd.down1c", "vpd.down3c", "vpd.up4e", "vpd.up2e", "lwd", "logit"}


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
        assert terms[0].keys() == TERMS | {"loss"}
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
    for name in (*TERMS, "loss"):
        assert cached[name] == pytest.approx(live[name], rel=1e-5, abs=1e-9), name


def test_real_scans_train(real_cache, runs):
    """At the published width of the U-Net."""
    options = (f"grid.shape={list(REAL_GRID)}", "student.width=64", "steps=1", "batch_size=1", "train=[train]")
    output = succeed(train(scans_folder(), real_cache, runs / "real", *options))
    assert "no validation" in output
    [line] = read_metrics(runs / "real", "train")
    assert all(math.isfinite(line[term]) and line[term] > 0 for term in TERMS)
