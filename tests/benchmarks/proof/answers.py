"""What the runs of the plan say: scores of every student, tested differences, and the weights that were chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.base.errors import DataError, SettingsError
from common.scans.label_map import LabelMap, load_label_map
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.comparison.fairness import training_differences
from stage2_train_student.comparison.planned_runs import PlannedRun
from stage2_train_student.comparison.statistics import Difference, Sample, difference
from stage2_train_student.comparison.training_runs import read_run
from stage2_train_student.evaluation.evaluation_file import EVALUATION_FILE
from tests.benchmarks.proof.plan import Folders, Plan, Question, planned_run, runs_of_choice


@dataclass(frozen=True)
class Scored:
    """Runs of a student of the plan, by seed, and their mIoU in points of 100."""

    experiment: Experiment
    miou: Sample

    @property
    def iou(self) -> dict[str, list[float | None]]:
        """IoU of each class by seed, in points of 100; None where it neither occurs nor was predicted."""
        reports = [run.evaluation or {} for run in self.experiment.runs]
        return {name: [points(report["iou"][name]) for report in reports] for name in reports[0]["iou"]}


def points(share: float | None) -> float | None:
    """A share in points of 100."""
    return None if share is None else 100 * share


def scored(name: str, runs: Sequence[PlannedRun], split: str) -> Scored:
    """Read runs.

    Raises:
        DataError: one has no score, or one on other streets.
    """
    read = tuple(read_run(run.folder) for run in runs)
    for run in read:
        if run.evaluated() is None:
            raise DataError(f"{run.folder}: not scored; run the proof again")
        check_split(run.evaluation or {}, split, run.folder / EVALUATION_FILE)
    values = {run.settings.seed: 100 * (run.evaluated() or {})["miou"] for run in read}
    return Scored(Experiment(name, read), Sample.by_seed(values))


def check_split(report: Mapping[str, Any], split: str, path: Path) -> None:
    """Refuse a score on other streets.

    Raises:
        DataError: it is one.
    """
    if report["splits"] != [split]:
        raise DataError(f"{path}: scored on {', '.join(report['splits'])}, the plan says {split}; remove it")


def scored_students(plan: Plan, folders: Folders, questions: Sequence[str]) -> dict[str, Scored]:
    """All students of some questions, each with as many seeds as the question that asks for most."""
    seeds: dict[str, int] = {}
    for question in (plan.questions[name] for name in questions):
        for name in question.students():
            seeds[name] = max(seeds.get(name, 0), question.seeds)
    return {
        name: scored(name, [planned_run(plan, folders, name, seed) for seed in range(count)], plan.split)
        for name, count in seeds.items()
    }


def compared(student: Scored, reference: Scored, question: Question, label_map: LabelMap) -> Difference:
    """Difference of the mean mIoU, paired by seed, tested as one of the question's comparisons.

    Raises:
        SettingsError: they were trained on other scans, views, labels or steps, and the question is not about that.
    """
    differences = training_differences(student.experiment, reference.experiment, label_map)
    unlike = [words for words in differences if words.partition(":")[0] not in question.varied]
    if unlike:
        names = f"{student.experiment.name} and {reference.experiment.name}"
        raise SettingsError(f"{names} did not train alike: {'; '.join(unlike)}")
    ours, theirs = (
        Sample(one.miou.values[: question.seeds], one.miou.seeds[: question.seeds]) for one in (student, reference)
    )
    gain = difference(ours, theirs)
    assert gain is not None
    return gain._replace(comparisons=len(question.comparisons))


def answer(question: Question, students: Mapping[str, Scored], label_map: LabelMap) -> dict[str, Any]:
    """All comparisons of a question, in points of mIoU."""
    rows = []
    for student, reference in question.comparisons.items():
        gain = compared(students[student], students[reference], question, label_map)
        assert gain.interval is not None
        one, other = (students[name].miou.values[: question.seeds] for name in (student, reference))
        rows.append(
            {
                "student": student,
                "reference": reference,
                "gain": gain.value,
                "standard_error": gain.error,
                "interval": list(gain.interval),
                "p_value": gain.p_value,
                "by_seed": [ours - theirs for ours, theirs in zip(one, other, strict=True)],
            }
        )
    asked = {"asked": question.asked, "seeds": question.seeds, "varied": list(question.varied)}
    return {**asked, "comparisons": rows}


def choice(plan: Plan, folders: Folders) -> list[dict[str, Any]]:
    """mIoU on the streets that chose, by the settings tried."""
    return [
        {"tried": name, "miou": scored("", [run], plan.choice.split).miou.values[0]}
        for name, run in zip(plan.choice.tried(), runs_of_choice(plan, folders), strict=True)
    ]


def headline(question: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a question's first comparison, that which the demo makes too."""
    row = question["comparisons"][0]
    error = row["standard_error"]
    return {
        "gain_miou": row["gain"],
        "gain_of": f"{row['student']} to {row['reference']}",
        "interval": row["interval"],
        "p_value": row["p_value"],
        "gain_over_two_se": row["gain"] / (2 * error) if error else None,
        "comparisons": len(question["comparisons"]),
        "seeds": question["seeds"],
    }


def student_numbers(student: Scored) -> dict[str, Any]:
    """Everything raw about a student: its runs by seed, their classes, and the time of a step."""
    seconds = Sample.of(run.seconds_per_step() for run in student.experiment.runs)
    return {
        "miou": student.miou.mean,
        "spread": student.miou.spread,
        "by_seed": dict(zip(map(str, student.miou.seeds), student.miou.values, strict=True)),
        "iou": student.iou,
        "steps": student.experiment.runs[0].last_step,
        "seconds_per_step": seconds.mean,
    }


def label_map_of(plan: Plan, folders: Folders) -> LabelMap:
    """The dataset of the plan's students."""
    return load_label_map(planned_run(plan, folders, plan.choice.student, 0).settings.dataset)
