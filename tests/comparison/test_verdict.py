"""The verdict: its statistics against SciPy's own tests, how often it is wrong, and when it is not given."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.base.config import load_settings
from common.scans.label_map import load_label_map
from common.scans.scan_id import ScanId
from common.scans.view import AnchorSet, ViewPolicy
from common.targets.store import ViewSet
from common.training.recorder import METRICS_FILE
from stage1_dump_teacher.settings import DumpSettings
from stage2_train_student.__main__ import main
from stage2_train_student.comparison.experiments import group_runs
from stage2_train_student.comparison.fairness import training_differences
from stage2_train_student.comparison.results import results
from stage2_train_student.comparison.statistics import Difference, Sample, difference
from stage2_train_student.comparison.training_runs import read_run
from stage2_train_student.comparison.verdict import verdict
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.seen_data import read_seen, seen_views
from tests.benchmarks.bench_verdict import false_positives
from tests.benchmarks.proof.plan import load_plan
from tests.shared.made_up_runs import write_run
from tests.shared.reduced import CONFIGS, DATASET, REPOSITORY, command, succeed, train

DRAWN = ViewSet(count=4)
LABEL_MAP = load_label_map(DATASET)
SCANS = [ScanId("00", f"{frame:06d}") for frame in range(3)]


def words(tmp_path: Path) -> tuple[str, str]:
    """The sentence and the notes of the comparison of all runs in `runs`."""
    out = tmp_path / "page.html"
    succeed(command(main, "compare", tmp_path / "runs", "--out", out))
    return out.read_text().partition('<p class="verdict')[2].partition("</p>")[0], out.with_suffix(".md").read_text()


def write_pair(
    tmp_path: Path, *changes: str, baseline: Sequence[str] = (), its_scans: Sequence[ScanId] = SCANS, **of_full
) -> None:
    """A baseline and a much better `full` of two seeds each that saw the same, but for what is given."""
    baseline = ("augmentation.count=4", *baseline)
    for seed in range(2):
        root, miou = tmp_path / "runs", 0.4 + 0.001 * seed
        write_run(root / f"baseline/seed{seed}", *baseline, seed=seed, miou=miou, seen=DRAWN, scans=its_scans)
        options = {"seen": DRAWN, "scans": SCANS} | of_full
        write_run(root / f"full/seed{seed}", *changes, name="full", seed=seed, miou=0.6 + 0.0011 * seed, **options)


def test_samples_of_the_same_seeds_are_tested_by_seed_and_others_with_welchs_error():
    ours = {0: 0.50, 1: 0.54, 2: 0.55}
    theirs = {2: 0.51, 0: 0.48, 1: 0.50}
    paired = difference(Sample.by_seed(ours), Sample.by_seed(theirs))._replace(comparisons=1)
    expected = stats.ttest_rel([0.50, 0.54, 0.55], [0.48, 0.50, 0.51])
    assert (paired.paired, paired.freedom) == (True, 2)
    assert paired.value / paired.error == pytest.approx(expected.statistic)
    assert paired.p_value == pytest.approx(expected.pvalue)
    assert paired.interval == pytest.approx(tuple(expected.confidence_interval()))

    other = difference(Sample.by_seed(ours), Sample.by_seed({5: 0.48, 6: 0.50}))
    assert (other.paired, other.freedom) == (False, 1)
    welch = stats.ttest_ind([0.50, 0.54, 0.55], [0.48, 0.50], equal_var=False)
    assert other.value / other.error == pytest.approx(welch.statistic)


def test_intervals_and_p_values_agree_and_grow_with_the_number_of_comparisons():
    for count, value in itertools.product((1, 4, 10), (0.01, 0.02, 0.05, 0.2)):
        found = Difference(value, 0.01, 4, comparisons=count)
        low, high = found.interval
        assert found.clear == (low > 0)
        assert found.p_value == pytest.approx(min(1, count * Difference(value, 0.01, 4, comparisons=1).p_value))
        assert high - value == pytest.approx(0.01 * stats.t.ppf(1 - 0.025 / count, 4))
    untested = Difference(0.2, 0.01, 4)
    assert (untested.p_value, untested.interval, untested.clear) == (None, None, False)
    assert Difference(0.0, 0.0, 4, comparisons=4).p_value == 1
    assert Difference(0.1, 0.0, 4, comparisons=4).p_value == 0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_without_an_effect_the_best_of_four_is_seldom_called_better(seeds):
    rates = false_positives(seeds, simulations=400)
    assert len(rates) == 4
    assert max(rates.values()) <= 0.05


def test_the_number_of_comparisons_is_that_of_the_experiments_that_can_be_tested(tmp_path):
    write_pair(tmp_path)
    for seed in range(2):
        write_run(tmp_path / f"runs/vpd/seed{seed}", name="vpd", seed=seed, miou=0.5 + 0.01 * seed, seen=DRAWN)
        write_run(tmp_path / f"runs/other/seed{seed}", "batch_size=1", name="vpd", seed=seed, seen=DRAWN)
    write_run(tmp_path / "runs/logit", name="logit", seen=DRAWN)
    experiments = group_runs([read_run(path.parent) for path in sorted(tmp_path.rglob(METRICS_FILE))])
    baseline = next(one for one in experiments if one.name == "baseline")
    found = {one.experiment.name: one for one in results(experiments, baseline, "validation", LABEL_MAP)}
    # `vpd` noted other scans than the baseline, `other` has other batches, `logit` one seed.
    assert {name: one.gain.comparisons for name, one in found.items() if one.gain} == {
        "full": 1, "vpd": 0, "other": 0, "logit": 0
    }  # fmt: skip
    assert verdict(list(found.values())).best is found["full"]


def test_equal_views_scans_steps_and_batches_get_a_verdict(tmp_path):
    write_pair(tmp_path)
    sentence, notes = words(tmp_path)
    assert "Yes: full is 20.0 points of mIoU above the baseline" in sentence
    assert "No verdict" not in notes
    assert "could not be checked" not in notes


def test_a_baseline_needs_no_scans_without_labels(tmp_path):
    few = {"baseline": ("train=['00']", "label_every=10"), "its_scans": SCANS[:1]}
    write_pair(tmp_path / "same", "labels=['00']", "label_every=10", **few)
    assert "Yes: full is 20.0 points of mIoU above the baseline" in words(tmp_path / "same")[0]
    write_pair(tmp_path / "more", "labels=['00']", "label_every=5", **few)
    sentence, notes = words(tmp_path / "more")
    assert "No verdict" in sentence
    assert "labels used: one in 5; the baseline's: one in 10" in notes
    # The same choice of more scans.
    write_pair(tmp_path / "whole", "labels=['00']", labelled=SCANS, baseline=("train=['00']",), its_scans=SCANS[:1])
    assert "scans with labels: 3 scans" in words(tmp_path / "whole")[1]
    write_pair(tmp_path / "part", "labels=['00']", labelled=SCANS[:1], baseline=("train=['00']",), its_scans=SCANS[:1])
    assert "Yes: full" in words(tmp_path / "part")[0]
    # Without a word on labels, more scans are more labels.
    write_pair(tmp_path / "all", **few)
    assert "training scans: 3 scans" in words(tmp_path / "all")[1]


@pytest.mark.parametrize(
    ("changes", "of_full", "reason"),
    [
        ((), {"seen": ViewSet()}, "views: the scan as it is; the baseline's: 4 of each scan"),
        ((), {"seen": ViewSet(count=4, policy=ViewPolicy(seed=1))}, "views: 4 of each scan"),
        ((), {"seen": ViewSet(anchors=AnchorSet())}, "anchors: flips none, y in 4 rotations"),
        (("views=anchors",), {"seen": ViewSet(anchors=AnchorSet())}, "flips none, y in every aligned rotation"),
        ((), {"scans": SCANS[:2]}, "training scans: 2 scans"),
        ((), {"left_out": 1}, ") without 1 that the dump skipped; the baseline's: 3 scans ("),
        (("train=['00']",), {}, "training sequences: 00; the baseline's: 00, 01, 02"),
        (("labels=['00']",), {}, "sequences with labels: 00; the baseline's: 00, 01, 02"),
        (("label_every=10",), {}, "labels used: one in 10; the baseline's: all"),
        ((), {"steps": 120}, "steps: 120; the baseline's: 60"),
        (("batch_size=4",), {}, "scans in a batch: 4; the baseline's: 2"),
        (("optimiser.accumulate=3",), {}, "batches in a step: 3; the baseline's: 1"),
        (("mix.probability=0.25",), {}, "mixed scans: 1 sector of another scan in 25 % of scans; the baseline's: none"),
    ],
)
def test_an_experiment_that_trained_otherwise_gets_no_verdict(tmp_path, changes, of_full, reason):
    write_pair(tmp_path, *changes, **of_full)
    sentence, notes = words(tmp_path)
    assert (
        "No verdict: full is 20.0 points of mIoU above the baseline, but did not train as the baseline did" in sentence
    )
    assert "No verdict on full, which did not train as the baseline did" in notes
    assert reason in notes
    assert "| +20.0 ± 0.0 |" in notes
    assert "95 % interval" not in notes


def test_runs_of_an_older_version_are_compared_with_a_note_unless_the_views_cannot_be_the_same(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"runs/baseline/seed{seed}", seed=seed, miou=0.4 + 0.001 * seed)
        write_run(tmp_path / f"runs/full/seed{seed}", name="full", seed=seed, miou=0.6 + 0.0011 * seed)
    sentence, notes = words(tmp_path)
    assert "Yes: full" in sentence
    assert "Whether the baseline saw the same views could not be checked for 2 runs of an older version" in notes

    # The baseline of older versions: a fresh view in every epoch, of which no store has enough.
    for seed in range(2):
        root = tmp_path / "runs" / "old" / f"seed{seed}"
        write_run(root, "augmentation.count=null", seed=seed, miou=0.4 + 0.001 * seed)
    out = tmp_path / "page.html"
    output = succeed(command(main, "compare", tmp_path / "runs", "--baseline", "old", "--out", out))
    assert "No verdict on full" in out.with_suffix(".md").read_text()
    assert "full" in output


@pytest.mark.parametrize("views", [DRAWN, ViewSet(), ViewSet(count=3, policy=ViewPolicy(flip=False, scale=0.1))])
def test_the_notes_name_the_setting_of_a_baseline_that_sees_the_same(tmp_path, views):
    settings = experiment("experiments", "full")
    seen = seen_views(settings, views)
    assert seen is not None
    setting = seen.as_augmentation()
    assert setting is not None
    same = load_settings(ExperimentSettings, CONFIGS / "experiments/baseline.yaml", [setting])
    assert seen_views(same, None) == seen

    write_pair(tmp_path, seen=ViewSet(count=5))
    assert "(a baseline that sees the same has augmentation={count: 5, policy: {" in words(tmp_path)[1]


def experiment(folder: str, name: str) -> ExperimentSettings:
    """Settings of an experiment that is shipped."""
    return load_settings(ExperimentSettings, CONFIGS / folder / f"{name}.yaml")


@pytest.mark.parametrize(("folder", "dump"), [("experiments", "teachers/cylinder3d"), ("demo", "demo/dump")])
def test_shipped_experiments_see_what_their_baseline_sees(folder, dump):
    stored = load_settings(DumpSettings, CONFIGS / f"{dump}.yaml").views
    baseline = experiment(folder, "baseline")
    for name in ("vpd", "lwd", "logit", "full"):
        settings = experiment(folder, name)
        assert seen_views(settings, stored) == seen_views(baseline, stored), name
        for key in ("label_every", "batch_size", "steps", "early_stopping"):
            assert getattr(settings, key) == getattr(baseline, key), (name, key)
        # In the demo only the teacher makes use of scans without labels; as many steps are other epochs of other scans.
        assert (settings.labels or settings.train) == baseline.train, name
        assert settings.labels or settings.epochs == baseline.epochs, name
        assert settings.optimiser == baseline.optimiser


def test_the_published_recipe_is_an_experiment_of_its_own_that_no_store_serves():
    augmented = seen_views(experiment("experiments", "baseline_augmented"), None)
    assert augmented.kind == "fresh"
    assert augmented.views.policy == ViewPolicy()
    for stored in (ViewSet(), DRAWN, ViewSet(anchors=AnchorSet())):
        assert seen_views(experiment("experiments", "full"), stored) != augmented


def test_a_run_notes_what_it_saw_and_is_compared_by_it(streets, street_cache, runs):
    short = ("steps=1", "batch_size=5", "validate_on=[]")
    succeed(train(streets, street_cache, runs / "full", *short))
    succeed(train(streets, None, runs / "baseline", *short, name="baseline"))
    seen = read_seen(runs / "full")
    assert seen.scans == 5
    assert seen.targets_hash == read_run(runs / "full").targets_hash
    [full, baseline] = group_runs([read_run(runs / "full"), read_run(runs / "baseline")])
    count = seen.views.views.count
    differing = training_differences(full, baseline, LABEL_MAP)
    assert [line.partition(":")[0] for line in differing] == (["views"] if count > 1 else [])
    succeed(train(streets, None, runs / "same", *short, f"augmentation.count={count}", name="baseline"))
    [same] = group_runs([read_run(runs / "same")])
    assert training_differences(full, same, LABEL_MAP) == []


def test_the_proofs_p_values_are_those_of_its_numbers_by_seed():
    numbers = json.loads((REPOSITORY / "tests/benchmarks/results/proof.json").read_text())
    plan = load_plan(REPOSITORY / "configs/proof/plan.yaml")
    assert list(numbers["questions"]) == list(plan.questions)
    for name, question in numbers["questions"].items():
        assert plan.questions[name].is_of(question)
        rows = question["comparisons"]
        for row in rows:
            ours, theirs = (
                [numbers["students"][row[side]]["by_seed"][str(seed)] for seed in range(question["seeds"])]
                for side in ("student", "reference")
            )
            assert row["by_seed"] == pytest.approx(list(np.subtract(ours, theirs)))
            assert row["gain"] == pytest.approx(np.mean(row["by_seed"]))
            if ours == theirs:
                # Of no difference at all Student's t cannot be formed.
                assert (row["p_value"], row["interval"]) == (1, [0, 0])
                continue
            tested = stats.ttest_rel(ours, theirs)
            assert row["p_value"] == pytest.approx(min(1, len(rows) * tested.pvalue)), row["student"]
            interval = tested.confidence_interval(1 - 0.05 / len(rows))
            assert row["interval"] == pytest.approx(tuple(interval))
    first = numbers["questions"]["few_labels"]["comparisons"][0]
    assert (numbers["gain_miou"], numbers["p_value"]) == (first["gain"], first["p_value"])


def test_a_paired_test_needs_the_spread_of_differences_only():
    """Seeds that differ widely, but alike in both experiments, do not hide a small gain."""
    seeds = np.linspace(0.2, 0.6, 5)
    ours = Sample.by_seed(dict(enumerate(seeds + 0.02 + np.array([0, 1, -1, 1, 0]) * 1e-3)))
    found = difference(ours, Sample.by_seed(dict(enumerate(seeds))))._replace(comparisons=4)
    assert found.clear
