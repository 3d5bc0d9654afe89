"""The proof: its plan, and all that it does at the smallest size."""

import json
from itertools import pairwise

import pytest

from common.base.config import parse_settings
from common.base.errors import SettingsError
from stage2_train_student.comparison.planned_runs import PlannedRun
from tests.benchmarks.proof.__main__ import PARTS_FILE, proof, with_answers
from tests.benchmarks.proof.cost import EXPERIMENTS, costs
from tests.benchmarks.proof.pictures import draw_all
from tests.benchmarks.proof.plan import Folders, Plan, load_plan, runs_of_choice, runs_of_question
from tests.benchmarks.proof.tables import tables
from tests.benchmarks.proof.work import dump_command, make_everything, make_runs, train_teacher_command
from tests.commands.test_demo import small_configs
from tests.shared.reduced import REPOSITORY

PARTS = {"dump_s": 7.0, "step_cached_s": 5.0, "step_online_s": 10.0, "full_mb": 12.0}


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    return load_plan()


def changed(plan: Plan, **values: object) -> Plan:
    return parse_settings(Plan, plan.model_dump(mode="json") | values, "test")


def test_every_run_of_the_plan_has_valid_settings_and_a_folder_of_its_own(plan):
    folders = Folders()
    runs: dict[str, PlannedRun] = {run.name: run for run in runs_of_choice(plan, folders)}
    assert len(runs) == len(plan.choice.tried())
    for question in plan.questions.values():
        for run in runs_of_question(plan, folders, question):
            assert runs.setdefault(run.name, run) == run
            assert (run.settings.targets == "cache") == ("--cache" in run.words)
            assert run.settings.seed != plan.choice.seed
    assert set(plan.questions["terms"].students()) == {"baseline", "vpd", "lwd", "logit", "full"}
    assert all(question.seeds >= 5 for question in plan.questions.values())


def test_a_plan_that_names_what_there_is_not_is_refused(plan):
    questions = plan.model_dump(mode="json")["questions"]
    with pytest.raises(SettingsError, match="there is no student nobody"):
        changed(plan, questions=questions | {"more": {"asked": "?", "seeds": 2, "comparisons": {"nobody": "full"}}})
    with pytest.raises(SettingsError, match="there is no cache four"):
        changed(plan, caches={})
    with pytest.raises(SettingsError, match="cache street_two_teachers: there is no teacher second"):
        changed(plan, teachers={})
    with pytest.raises(SettingsError, match="answers no question"):
        changed(plan, questions={"terms": questions["terms"], "few_labels": questions["terms"]})
    with pytest.raises(SettingsError, match="there is no question few_labels"):
        changed(plan, questions={"terms": questions["terms"]})


def test_a_cache_of_two_teachers_is_dumped_by_the_plans_own_and_one_that_is_trained(plan):
    train = train_teacher_command(plan, Folders(), "second")
    dump = dump_command(plan, Folders(), "street_two_teachers")
    assert train[train.index("--set") + 1] == "seed=1"
    trained = f"{train[train.index('--run') + 1]}/teacher_last.safetensors"
    teachers = [word for option, word in pairwise(dump) if option == "--teacher"]
    assert teachers == [str(plan.teacher), trained]


def test_the_more_experiments_the_less_the_dump_counts():
    rows = costs(PARTS)
    ratios = [row["ratio"] for row in rows]
    assert [row["experiments"] for row in rows] == list(EXPERIMENTS)
    assert sorted(ratios, reverse=True) == ratios
    assert ratios[0] == pytest.approx((4 * 7 + 40 * 5) / (40 * 10))


def test_a_small_proof_from_its_plan_to_its_tables_and_pictures(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configs = small_configs(tmp_path / "configs")
    small = small_plan(plan, configs)
    folders = Folders(tmp_path / "data", tmp_path / "cache", tmp_path / "runs")
    make_everything(small, folders, jobs=2)
    (folders.runs / PARTS_FILE).write_text(json.dumps(PARTS))
    numbers = json.loads(json.dumps(proof(small, folders)))
    assert set(numbers["terms"]) == {"full"}
    by_seed = [numbers["students"][name]["by_seed"] for name in ("full", "baseline")]
    assert numbers["gain_miou"] == pytest.approx(sum(by_seed[0][seed] - by_seed[1][seed] for seed in "01") / 2)
    assert 0 < numbers["p_value"] <= 1
    assert numbers["seeds"] == 2
    text = tables(numbers, small)
    assert f"{numbers['gain_miou']:+.1f}" in text
    assert "Is it fair?" in text
    assert all(path.stat().st_size > 5000 for path in draw_all(numbers, tmp_path))
    before = {path: path.stat().st_mtime_ns for path in folders.runs.rglob("evaluation.json")}
    assert len(before) == 5
    make_runs(folders, runs_of_question(small, folders, small.questions["terms"]), small.split, jobs=2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert with_answers(numbers, small, folders, ["terms"]) == numbers
    change_baseline(folders, "mix: null", "mix: {probability: 0.5, sectors: 1}")
    with pytest.raises(SettingsError, match="did not train alike: mixed scans"):
        with_answers(numbers, small, folders, ["terms"])
    questions = small.model_dump(mode="json")["questions"]
    about_mixing = changed(small, questions=questions | {"terms": questions["terms"] | {"varied": ["mixed scans"]}})
    assert with_answers(numbers, about_mixing, folders, ["terms"])["gain_miou"] == numbers["gain_miou"]
    change_baseline(folders, "batch_size: 1", "batch_size: 2")
    with pytest.raises(SettingsError, match="did not train alike: scans in a batch"):
        with_answers(numbers, about_mixing, folders, ["terms"])


def change_baseline(folders: Folders, setting: str, to: str) -> None:
    """Of both seeds, as if they had been trained so."""
    for path in (folders.runs / "baseline").glob("*/settings.yaml"):
        assert setting in path.read_text()
        path.write_text(path.read_text().replace(setting, to))


def small_plan(plan: Plan, configs) -> Plan:
    """One question, two seeds, one weight tried, and the demo's settings for one step."""
    cache = {"config": str(configs / "dump.yaml"), "set": []}
    students = {
        "baseline": {"config": str(configs / "baseline.yaml")},
        "full": {"config": str(configs / "full.yaml"), "cache": "one"},
    }
    question = {"asked": "Is it fair?", "seeds": 2, "comparisons": {"full": "baseline"}}
    choice = {"split": "val", "seed": 100, "student": "full", "grid": {"logit": [1.0]}, "others": {}}
    return changed(
        plan,
        streets=str(configs / "streets.yaml"),
        choice=choice,
        caches={"one": cache},
        students=students,
        questions={"terms": question, "few_labels": question | {"comparisons": {"full": "baseline"}}},
    )
