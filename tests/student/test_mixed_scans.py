"""Training on mixed scans: the same ones with and without a teacher, resumed to the bit, compared fairly."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.base.errors import SettingsError
from common.scans.dataset import Dataset
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.targets.mixing import Mixing, MixSettings, draw_mixing, mixed_scan, mixed_targets
from common.targets.store import TargetStore
from common.training.checkpoint import load_checkpoint
from common.training.recorder import read_metrics
from stage2_train_student.comparison.experiments import group_runs
from stage2_train_student.comparison.fairness import training_differences
from stage2_train_student.comparison.training_runs import read_run
from stage2_train_student.training import step as step_module
from stage2_train_student.training.data import StudentData
from stage2_train_student.training.experiment import TargetSource, student_data
from tests.shared.reduced import DATASET, STREET_GRID, fail, reduced_experiment, same_targets, saved, succeed, train
from tests.shared.resumed_runs import assert_same_run, differing

SCANS = [ScanId("00", f"{frame:06d}") for frame in range(5)]
MIX = "mix={probability: 0.7}"
SHORT = ("batch_size=2", "epochs=2", "steps=4", "validate_on=[]", "student.dropblock=0", "student.width=16", MIX)
"""Narrower students hardly tell one scan from another before they have learnt."""
PVKD = (
    "grid.volume=polarnet",
    "student.options={base: 4, point_channels: 32, voxel_channels: 4}",
    "distillation.supervoxels={size: [16, 16, 4], count: 3, points: 64, voxels: 32}",
    "distillation.pairs=[{term: point_affinity, teacher: up0e, student: up0e}, "
    "{term: voxel_affinity, teacher: up0e, student: up0e}]",
)
VIEWS = "augmentation.count=2"
"""What the baseline sees the views of the cache by."""


def data_of(streets: Path, cache: Path | None, *overrides: str, name: str = "full") -> StudentData:
    settings = reduced_experiment(STREET_GRID, *overrides, name=name)
    source = TargetSource(TargetStore.open(cache)) if cache else TargetSource()
    return student_data(settings, Dataset.open(streets, load_label_map(settings.dataset)), source, scans=SCANS)


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory, streets, street_cache):
    """A run of `SHORT` from the cache, in one."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    succeed(train(streets, street_cache, run, *SHORT))
    yield run
    shutil.rmtree(run)


def test_a_batch_holds_mixed_scans_and_their_targets_the_baseline_the_same_scans(streets, street_cache):
    """Across both views of the cache: each scan is mixed in the view of its epoch."""
    cached, plain = data_of(streets, street_cache, MIX), data_of(streets, None, MIX, VIEWS, name="baseline")
    unmixed, mixed = data_of(streets, street_cache), 0
    for epoch in range(3):
        batch = cached.load_batch(SCANS, epoch)
        other = plain.load_batch(SCANS, epoch)
        assert other.targets == []
        for name, value in vars(other.batch).items():
            same = vars(batch.batch)[name]
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name
        targets = batch.decoded_targets(torch.device("cpu"))
        assert torch.equal(targets.voxels, batch.batch.voxels)
        for row, scan in enumerate(SCANS):
            mixing, (own, of_own) = cached.mixing(scan, epoch), unmixed.load(scan, epoch)
            assert of_own is not None
            expected = of_own.decode()
            if mixing is not None:
                mixed += 1
                partner, of_partner = unmixed.load(mixing.partner, epoch)
                assert of_partner is not None
                taken = mixing.taken(STREET_GRID[1])
                expected = mixed_targets(expected, of_partner.decode(), taken, STREET_GRID)
                own = mixed_scan(own, partner, taken)
            assert same_targets(batch.targets[row].decode(), expected)
            np.testing.assert_array_equal(own.voxels, expected.voxels[:, 1:])
    assert 6 <= mixed <= 14


def test_voxel_features_are_mixed_with_the_voxels_that_they_belong_to(streets, street_cache):
    words = ("mix={probability: 1}", *PVKD)
    data, mixed_in = data_of(streets, street_cache, *words, name="pvkd"), 0
    for epoch in range(2):
        loaded = data.load_batch(SCANS, epoch)
        layer = loaded.decoded_targets(torch.device("cpu")).voxel_layers["up0e"]
        assert torch.equal(layer.voxels, loaded.batch.voxels)
        for row, scan in enumerate(SCANS):
            mixing = data.mixing(scan, epoch)
            assert mixing is not None
            taken, known = mixing.taken(STREET_GRID[1]), []
            for source in (scan, mixing.partner):
                of_source = data.load_unmixed(source, epoch)[1].decode().voxel_layers["up0e"]
                known.append(dict(zip(map(tuple, of_source.voxels[:, 1:].tolist()), of_source.features, strict=True)))
            inside = layer.voxels[:, 0] == row
            for bins, features in zip(layer.voxels[inside, 1:].tolist(), layer.features[inside], strict=True):
                assert torch.equal(features, known[int(taken[bins[1]])][tuple(bins)])
                mixed_in += int(taken[bins[1]])
    assert mixed_in > 100


def test_pvkd_learns_from_mixed_scans_of_a_cache_and_of_a_live_teacher(streets, street_cache, reduced_teacher, runs):
    options = ("mix={probability: 1}", *PVKD, "validate_on=[]", "steps=1", "batch_size=5")
    succeed(train(streets, street_cache, runs / "cache", *options, name="pvkd"))
    live = (*options, "targets=online", VIEWS)
    succeed(train(streets, None, runs / "live", *live, name="pvkd", options=("--teacher", reduced_teacher)))
    cached, asked = (read_metrics(runs / name, "train")[0] for name in ("cache", "live"))
    assert cached["cross_entropy"] == pytest.approx(asked["cross_entropy"], rel=1e-5)
    # The teacher answers otherwise beside the cuts alone.
    for name in ("point_output", "voxel_output", "point_affinity", "voxel_affinity"):
        assert 0 < cached[name] == pytest.approx(asked[name], rel=0.3), name


def test_a_teacher_that_goes_by_names_of_scans_cannot_be_asked_about_mixed_ones(streets, runs, tmp_path):
    (tmp_path / "classes.yaml").write_text("model: any\nkind: logits\n")
    options = ("mix={probability: 1}", VIEWS, "targets=online", "validate_on=[]", "steps=1")
    refused = fail(train(streets, None, runs / "named", *options, name="logit", options=("--teacher", tmp_path)))
    assert "two mixed scans are none" in refused
    assert "train from a store of these targets (targets=cache), or set mix=null" in refused


def test_the_views_and_the_order_are_those_without_mixing(streets):
    data = data_of(streets, None, MIX, "augmentation.count=null", name="baseline")
    plain = data_of(streets, None, "augmentation.count=null", name="baseline")
    for scan in SCANS:
        assert data.drawn_view(scan, 3) == plain.drawn_view(scan, 3)
        assert data.mixing(scan, 3) == draw_mixing(MixSettings(probability=0.7), 40, 0, scan, 3, SCANS)
        assert plain.mixing(scan, 3) is None


def test_a_sector_of_a_scan_whose_labels_are_not_used_has_none(streets):
    words = ("mix={probability: 1}", "train=['00']", "labels=['00']", "distillation.logit_threshold=null")
    data = data_of(streets, None, *words)
    data = replace(data, labelled=frozenset(SCANS[:1]))
    mixing = data.mixing(SCANS[0], 0)
    assert mixing is not None
    voxelised, _ = data.load(SCANS[0], 0)
    of_other = mixing.taken(STREET_GRID[1])[voxelised.voxels[:, 1]]
    assert not voxelised.voxel_labels[of_other].any()
    assert voxelised.voxel_labels[~of_other].any()


def test_where_the_mixed_scan_would_be_empty_it_stays_as_it_is(streets, monkeypatch):
    data = data_of(streets, None, "mix={probability: 1}", name="baseline")
    nothing = mixed_scan(*[data.load_unmixed(SCANS[0], 0)[0]] * 2, np.zeros(40, bool))
    empty = type(nothing)(*(value[:0] for value in vars(nothing).values()))
    monkeypatch.setattr("stage2_train_student.training.data.mixed_scan", lambda *_: empty)
    assert len(data.load(SCANS[0], 0)[0].voxels) == len(nothing.voxels)


def test_a_run_in_two_parts_is_bit_for_bit_the_run_in_one(streets, street_cache, runs, mixed_run):
    run = runs / "parts"
    succeed(train(streets, street_cache, run, *SHORT, "steps=2"))
    other = fail(train(streets, street_cache, run, *SHORT, "mix=null", options=("--resume",)))
    assert "mix: {'probability': 0.7, 'sectors': 1} in the run, None now" in other
    succeed(train(streets, street_cache, run, *SHORT, options=("--resume",)))
    assert_same_run(run, mixed_run)


def test_the_baseline_mixes_as_fairly_and_only_a_mixed_one_is_compared(streets, street_cache, runs, mixed_run):
    succeed(train(streets, None, runs / "mixed", *SHORT, VIEWS, name="baseline"))
    succeed(train(streets, None, runs / "plain", *SHORT, VIEWS, "mix=null", "steps=1", name="baseline"))
    assert differing(saved(runs / "mixed")["student"], saved(runs / "plain")["student"]) != []
    first = [read_metrics(runs / name, "train")[0]["cross_entropy"] for name in ("mixed", "plain")]
    cached = read_metrics(mixed_run, "train")[0]["cross_entropy"]
    assert first[0] == pytest.approx(cached, rel=1e-5)
    assert first[1] != pytest.approx(cached, rel=1e-3)
    [full, mixed, plain] = [group_runs([read_run(run)])[0] for run in (mixed_run, runs / "mixed", runs / "plain")]
    label_map = load_label_map(DATASET)
    assert training_differences(full, mixed, label_map) == []
    differing_in = training_differences(full, plain, label_map)
    assert "mixed scans: 1 sector of another scan in 70 % of scans; the baseline's: none" in differing_in


def test_a_live_teacher_sees_the_mixed_scan(streets, reduced_teacher, runs):
    options = ("steps=1", "batch_size=5", "validate_on=[]", MIX, "targets=online", VIEWS)
    output = train(streets, None, runs / "online", *options, options=("--teacher", reduced_teacher))
    succeed(output)
    [line] = read_metrics(runs / "online", "train")
    assert line["vpd"] > 0


def test_what_was_mixed_is_kept_beside_a_batch_that_breaks_a_run(streets, runs, monkeypatch):
    terms = step_module.segmentation_terms

    def broken(*arguments):
        return {name: value * torch.nan for name, value in terms(*arguments).items()}

    monkeypatch.setattr(step_module, "segmentation_terms", broken)
    fail(train(streets, None, runs / "broken", *SHORT, "mix.probability=1", VIEWS, name="baseline"))
    kept = load_checkpoint(runs / "broken" / "non_finite_batch_1.pt")
    scans = [ScanId(*name.split("/")) for name in kept["scans"]]
    mixed = [draw_mixing(MixSettings(probability=1), 40, 0, scan, 0, SCANS) for scan in scans]
    assert kept["mixed"] == [str(one) for one in mixed]
    assert all(isinstance(one, Mixing) for one in mixed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mix.sectors=2", "mix.sectors: 40 azimuth bins have room for 1 at most"),
        ("mix.probability=0", "mix.probability: must be greater than 0"),
        ("mix.sector=1", "did you mean 'sectors'"),
        ("mix=0.5", "mix: must have keys of its own"),
    ],
)
def test_settings_that_cannot_work_are_refused(override, message):
    with pytest.raises(SettingsError, match=message):
        reduced_experiment(STREET_GRID, override)


def test_one_scan_alone_cannot_be_mixed(tmp_path, streets, runs):
    data = tmp_path / "one"
    shutil.copytree(streets, data)
    for frame in range(1, 5):
        (data / f"sequences/00/velodyne/{frame:06d}.bin").unlink()
        (data / f"sequences/00/labels/{frame:06d}.label").unlink()
    message = fail(train(data, None, runs / "one", MIX, VIEWS, name="baseline"))
    assert "mix: there is no second training scan to mix with; set mix=null" in message
