"""Comparison of runs: what belongs together, means, spreads and differences against numbers by hand, refusals."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from stage2_train_student.__main__ import main
from stage2_train_student.comparison.charts import block_means
from stage2_train_student.comparison.experiments import distinct_names
from stage2_train_student.comparison.statistics import Sample, difference
from stage2_train_student.evaluation.evaluation_file import REQUIRED
from tests.shared.made_up_runs import MACHINE, NAMES, class_ious, write_evaluation, write_run
from tests.shared.reduced import DATASET, command, fail, succeed


def compare(tmp_path: Path, *words) -> Path:
    """Run the command on folders and return the page."""
    out = tmp_path / "page" / "comparison.html"
    succeed(command(main, "compare", *words, "--out", out))
    return out


def rows_of(page: Path) -> dict[str, dict[str, str]]:
    """The CSV beside a page, by experiment."""
    with page.with_suffix(".csv").open() as file:
        return {row["experiment"]: row for row in csv.DictReader(file)}


def verdict_of(page: Path) -> str:
    """The sentence at the head of a page."""
    return page.read_text().partition('<p class="verdict')[2].partition("</p>")[0]


def test_runs_that_differ_in_their_seed_only_are_one_experiment_with_mean_spread_and_difference(tmp_path):
    scores = {"baseline": (0.40, 0.42, 0.44), "full": (0.50, 0.51)}
    for name, mious in scores.items():
        for seed, miou in enumerate(mious):
            write_run(tmp_path / "runs" / name / f"seed{seed}", name=name, seed=seed, miou=miou)
    page = compare(tmp_path, tmp_path / "runs")
    rows = rows_of(page)
    assert list(rows) == ["baseline", "full"]
    assert [rows[name]["seeds"] for name in scores] == ["0 1 2", "0 1"]
    assert float(rows["baseline"]["miou_mean"]) == pytest.approx(0.42)
    # By hand: ((0.02)^2 + 0 + (0.02)^2) / 2 = 0.0004; (0.005^2 + 0.005^2) / 1 = 0.00005.
    assert float(rows["baseline"]["miou_standard_deviation"]) == pytest.approx(0.02)
    assert float(rows["full"]["miou_standard_deviation"]) == pytest.approx(math.sqrt(0.00005))
    assert float(rows["full"]["miou_gain"]) == pytest.approx(0.085)
    assert float(rows["full"]["miou_gain_standard_error"]) == pytest.approx(math.sqrt(0.0004 / 3 + 0.00005 / 2))
    assert rows["baseline"]["miou_gain"] == ""
    car = [class_ious(miou)["car"] for miou in scores["full"]]
    assert float(rows["full"]["iou_mean car"]) == pytest.approx(np.mean(car))
    assert float(rows["full"]["iou_standard_deviation car"]) == pytest.approx(abs(car[0] - car[1]) / math.sqrt(2))
    markdown = page.with_suffix(".md").read_text()
    # By hand: t = 0.085 / 0.012583 = 6.755 with one degree of freedom: p = 1 - 2 / pi arctan(t) = 0.0936, and the
    # interval reaches tan(0.95 pi / 2) = 12.706 errors, 0.1599, to each side.
    assert "| full | 2 (0, 1) | 50.5 ± 0.7 | +8.5 ± 1.3 | -7.5 to +24.5 | 0.094 |" in markdown
    assert float(rows["full"]["miou_gain_p_value"]) == pytest.approx(
        1 - 2 / math.pi * math.atan(0.085 / 0.0125831), rel=1e-4
    )
    assert float(rows["full"]["miou_gain_interval_low"]) == pytest.approx(0.085 - 12.7062 * 0.0125831, abs=1e-5)
    assert "| baseline | 3 (0, 1, 2) | 42.0 ± 2.0 | baseline |" in markdown
    assert "No clear difference: full is 8.5 points of mIoU above the baseline" in page.read_text()


def test_time_is_the_median_step_and_memory_the_highest_of_the_seeds(tmp_path):
    for seed, gigabytes in enumerate((1.5, 2.5)):
        write_run(tmp_path / f"full_seed{seed}", name="full", seed=seed, step_seconds=0.5, gigabytes=gigabytes)
    folder = write_run(tmp_path / "baseline_seed0", step_seconds=0.25, steps=40, gigabytes=None)
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines.replace('"seconds": 0.25', '"seconds": 9.0', 1))
    rows = rows_of(compare(tmp_path, tmp_path))
    assert float(rows["baseline"]["seconds_per_step"]) == 0.25
    assert float(rows["baseline"]["training_seconds"]) == pytest.approx(39 * 0.25 + 9)
    assert rows["baseline"]["peak_memory_bytes"] == ""
    assert float(rows["full"]["peak_memory_bytes"]) == 2.5e9


def test_only_settings_that_differ_are_shown_by_their_dotted_names(tmp_path):
    write_run(tmp_path / "baseline")
    write_run(tmp_path / "full", "optimiser.learning_rate=1e-3", name="full")
    table = compare(tmp_path, tmp_path).with_suffix(".md").read_text().partition("## Settings that differ")[2]
    assert "| optimiser.learning_rate | 0.0005 | 0.001 |" in table
    assert "| targets | none | cache |" in table
    assert "| augmentation.policy.rotate | true | not set |" in table
    for absent in ("batch_size", "| seed |", "| augmentation |", "dataset"):
        assert absent not in table, absent


def test_evaluations_are_taken_where_every_run_has_one_and_best_validations_otherwise(tmp_path):
    for name, miou in (("baseline", 0.4), ("full", 0.5)):
        write_evaluation(write_run(tmp_path / name, name=name, miou=miou), miou + 0.1, 0.9 if name == "full" else None)
    page = compare(tmp_path, tmp_path)
    rows = rows_of(page)
    assert [float(row["miou_mean"]) for row in rows.values()] == pytest.approx([0.5, 0.6])
    assert float(rows["full"]["agreement_mean"]) == 0.9
    assert "evaluated on val (4,071 scans" in page.read_text()
    assert "| full | 63.0 | 60.6 |" in page.with_suffix(".md").read_text()

    page = compare(tmp_path, tmp_path, "--scores", "validation")
    assert [float(row["miou_mean"]) for row in rows_of(page).values()] == pytest.approx([0.4, 0.5])
    assert "validated on val" in page.read_text()

    (tmp_path / "full" / "evaluation.json").unlink()
    page = compare(tmp_path, tmp_path)
    assert [float(row["miou_mean"]) for row in rows_of(page).values()] == pytest.approx([0.4, 0.5])
    assert (
        f"Not evaluated, so that evaluations are not shown: {tmp_path / 'full'}" in page.with_suffix(".md").read_text()
    )
    message = fail(command(main, "compare", tmp_path, "--scores", "evaluation"))
    assert "1 of 2 runs have no evaluation" in message
    assert str(tmp_path / "full") in message


@pytest.mark.parametrize("change", [{"scans": 5}, {"scans_sha256": "c" * 64}, {"views": 8}, {"points": 3}])
def test_runs_evaluated_on_different_points_are_refused(tmp_path, change):
    write_evaluation(write_run(tmp_path / "baseline"), 0.4)
    write_evaluation(write_run(tmp_path / "full", name="full"), 0.5, **change)
    message = fail(command(main, "compare", tmp_path, "--out", tmp_path / "page.html"))
    assert "were not scored on the same points" in message
    assert not (tmp_path / "page.html").exists()


def test_validations_on_different_scans_are_refused(tmp_path):
    write_run(tmp_path / "baseline")
    write_run(tmp_path / "full", "validate_on=['00']", name="full")
    message = fail(command(main, "compare", tmp_path))
    assert "validate_on ['08'] and ['00']" in message


def test_a_split_and_its_sequences_are_the_same_scans(tmp_path):
    write_evaluation(write_run(tmp_path / "baseline"), 0.4)
    write_evaluation(write_run(tmp_path / "full", "validate_on=['08']", name="full"), 0.5, splits=["08"])
    for scores in ("evaluation", "validation"):
        assert len(rows_of(compare(tmp_path, tmp_path, "--scores", scores))) == 2


def test_an_evaluation_of_weights_that_changed_since_is_refused(tmp_path):
    folder = write_run(tmp_path / "baseline")
    write_evaluation(folder, 0.4)
    (folder / "student_best.pt").write_bytes(b"trained on")
    message = fail(command(main, "compare", folder))
    assert "student_best.pt has changed since it was evaluated" in message
    text = compare(tmp_path, folder, "--scores", "validation").with_suffix(".md").read_text()
    assert "| baseline | 1 (0) | 50.0 |" in text
    assert f"Evaluations that cannot be used are left out: {folder}." in text
    (folder / "evaluation.json").write_text('{"miou": 0.5}')
    assert "it lacks weights, weights_sha256" in fail(command(main, "compare", folder))
    (folder / "evaluation.json").write_text(json.dumps({**dict.fromkeys(REQUIRED, 1), "iou": []}))
    assert "iou is no table by class" in fail(command(main, "compare", folder))


def test_scores_on_the_scans_that_chose_the_students_are_said_to_be_so(tmp_path):
    folder = write_run(tmp_path / "baseline")
    write_evaluation(folder, 0.4)
    assert "Students were chosen by their mIoU on 08" in compare(tmp_path, tmp_path).with_suffix(".md").read_text()
    write_evaluation(folder, 0.4, splits=["11"])
    assert "Students were chosen" not in compare(tmp_path, tmp_path).with_suffix(".md").read_text()


def test_runs_of_different_datasets_are_refused_but_not_of_one_under_two_paths(tmp_path):
    write_run(tmp_path / "runs/baseline")
    (tmp_path / "same.yaml").write_text(DATASET.read_text())
    write_run(tmp_path / "runs/full", f"dataset={tmp_path / 'same.yaml'}", name="full")
    compare(tmp_path, tmp_path / "runs")
    (tmp_path / "other.yaml").write_text(DATASET.read_text().replace("name: semantic_kitti", "name: harbour"))
    write_run(tmp_path / "runs/vpd", f"dataset={tmp_path / 'other.yaml'}", name="vpd")
    message = fail(command(main, "compare", tmp_path / "runs"))
    assert "'harbour'" in message
    assert "different datasets" in message


def test_folders_without_a_run_and_runs_that_count_twice_are_refused(tmp_path):
    assert "no such folder" in fail(command(main, "compare", tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "no training run here or below it" in fail(command(main, "compare", tmp_path / "empty"))
    first, second = (write_run(tmp_path / "runs" / name) for name in ("one", "two"))
    message = fail(command(main, "compare", tmp_path / "runs"))
    assert f"{first} and {second} are the same experiment with the same seed (0)" in message
    # The same folder named twice is one run.
    assert list(rows_of(compare(tmp_path, first, first))) == ["one"]


def test_runs_with_targets_of_different_caches_are_different_experiments(tmp_path):
    for name, targets in (("one_view", "a" * 64), ("four_views", "b" * 64)):
        write_run(tmp_path / name / "seed0", name="full", targets_hash=targets)
    page = compare(tmp_path, tmp_path)
    assert set(rows_of(page)) == {"one_view", "four_views"}
    assert "aaaaaaaaaaaa" in page.with_suffix(".md").read_text().partition("Settings that differ")[2]


def test_a_run_that_has_recorded_nothing_yet_belongs_to_its_experiment(tmp_path):
    for seed in range(3):
        folder = write_run(tmp_path / "full" / f"seed{seed}", name="full", seed=seed, targets_hash="a" * 64)
    (folder / "metrics.jsonl").write_text("")
    rows = rows_of(compare(tmp_path, tmp_path))
    assert {name: row["seeds"] for name, row in rows.items()} == {"full": "0 1 2"}


def test_settings_that_change_nothing_about_the_student_do_not_split_an_experiment(tmp_path):
    write_run(tmp_path / "full" / "seed0", name="full")
    write_run(tmp_path / "full" / "seed1", "loading_threads=4", "save_every=10", name="full", seed=1)
    rows = rows_of(compare(tmp_path, tmp_path))
    assert {name: row["seeds"] for name, row in rows.items()} == {"full": "0 1"}


def test_without_a_teacherless_experiment_there_is_no_difference_unless_a_baseline_is_named(tmp_path):
    write_run(tmp_path / "vpd", name="vpd", miou=0.5)
    write_run(tmp_path / "full", name="full", miou=0.6)
    page = compare(tmp_path, tmp_path)
    assert "to the baseline" not in page.with_suffix(".md").read_text()
    assert "cannot be said without the mIoU of a baseline" in page.read_text()
    rows = rows_of(compare(tmp_path, tmp_path, "--baseline", "vpd"))
    assert float(rows["full"]["miou_gain"]) == pytest.approx(0.1)
    assert rows["full"]["miou_gain_standard_error"] == ""
    assert "there are: full, vpd" in fail(command(main, "compare", tmp_path, "--baseline", "lwd"))


def test_one_seed_a_small_difference_and_a_loss_are_said_to_be_so(tmp_path):
    def sentence(*gains: float) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for seed, gain in enumerate(gains):
            write_run(root / f"baseline_seed{seed}", seed=seed, miou=0.5 + 0.01 * seed)
            write_run(root / f"full_seed{seed}", name="full", seed=seed, miou=0.5 + 0.01 * seed + gain)
        return verdict_of(compare(root, root))

    assert "Not known: full is 10.0 points of mIoU above the baseline, but without several seeds" in sentence(0.1)
    assert "No clear difference" in sentence(0.015, 0.001, 0.002)
    # Clear by twice the standard error, 2.1 +- 0.7, but not by Student's t of two seeds.
    assert "No clear difference" in sentence(0.014, 0.028)
    assert "Yes: full is 10.0 points of mIoU above" in sentence(0.1, 0.101, 0.099)
    assert "No: full is 10.0 points of mIoU below" in sentence(-0.1, -0.101, -0.099)


def test_what_a_reader_must_know_is_noted(tmp_path):
    write_run(tmp_path / "baseline", gigabytes=None)
    folder = write_run(tmp_path / "full", name="full", environment=MACHINE | {"threads": 8})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:30]) + '\n{"kind": "tra')
    text = compare(tmp_path, tmp_path).with_suffix(".md").read_text()
    assert f"Not finished: {folder}." in text
    assert "different numbers of threads" in text


def test_the_teachers_miou_is_shown_if_it_is_of_the_same_points(tmp_path):
    for name, miou in (("baseline", 0.4), ("full", 0.5)):
        write_evaluation(write_run(tmp_path / "runs" / name, name=name), miou)
    report = json.loads((tmp_path / "runs/full/evaluation.json").read_text()) | {"miou": 0.6}
    teacher = tmp_path / "teacher.json"
    teacher.write_text(json.dumps(report))
    text = compare(tmp_path, tmp_path / "runs", "--teacher-evaluation", teacher).read_text()
    assert "<b>50 %</b><span>of the way to the teacher</span><small>teacher 60.0 %</small>" in text
    teacher.write_text(json.dumps(report | {"scans": 7}))
    message = fail(command(main, "compare", tmp_path / "runs", "--teacher-evaluation", teacher))
    assert "scans 7 and 4071" in message


def test_names_come_from_folders_and_tell_experiments_apart(tmp_path):
    names = ["runs/full/seed0", "runs/lwd_seed_3", "runs/vpd-seed=12", "seed_1", "a/full", "b/full"]
    found = distinct_names([tmp_path / "x" / name for name in names])
    assert found == ["runs/full", "lwd", "vpd", "x", "a/full", "b/full"]


def test_a_sample_of_one_has_no_spread_and_no_error():
    one, two = Sample.of([0.5, None]), Sample.of([0.4, 0.6])
    assert (one.mean, one.spread) == (0.5, None)
    found = difference(one, two)
    assert found is not None
    assert found.error is None
    assert not found.clear
    assert difference(one, Sample(())) is None


def test_curves_average_blocks_of_steps():
    pairs = np.array([(1, 2.0), (2, 4.0), (3, 5.0), (4, 7.0), (5, 1.0)])
    assert block_means(pairs, 2).tolist() == [[1.5, 3.0], [3.5, 6.0], [5.5, 1.0]]


def test_every_class_has_a_row_and_names_are_no_markup(tmp_path):
    folder = write_run(tmp_path / "<b>bold</b> & |", miou=0.5)
    page = compare(tmp_path, folder)
    text = page.read_text()
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;" in text or "b&gt; &amp; |" in text
    table = page.with_suffix(".md").read_text()
    assert all(f"| {name} | " in table for name in NAMES)


def test_runs_that_have_hardly_begun_and_many_experiments_are_shown(tmp_path):
    folder = write_run(tmp_path / "runs/baseline")
    (folder / "metrics.jsonl").write_text("")
    page = compare(tmp_path, tmp_path / "runs")
    assert "No run has been validated or evaluated yet" in page.read_text()
    assert rows_of(page)["baseline"]["miou_mean"] == ""
    for number in range(9):
        write_run(tmp_path / f"runs/rate{number}", f"optimiser.learning_rate={1e-3 + number}", name="full")
    page = compare(tmp_path, tmp_path / "runs")
    assert len(rows_of(page)) == 10
    assert len(set(re.findall(r'<svg class="swatch ([^"]*)"', page.read_text()))) == 10
    assert "rate0 is the best of 9" in page.read_text()
