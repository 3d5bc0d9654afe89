"""Does distilling from a cache work, when, and what does it cost?

    make proof                 (python -m tests.benchmarks.proof; resumable)

Simulated streets, a teacher trained on the training streets only, and the students of `configs/proof/plan.yaml`, scored
on three streets that no model trained on and that chose nothing. A run is scored by its last student. Writes
`tests/benchmarks/results/proof.json`, the pictures of `docs/proof.md`, and prints its tables.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from common.base.errors import DataError, PolarDistillError
from common.base.files import write_json
from stage2_train_student.evaluation.evaluation_file import read_report
from tests.benchmarks.proof.answers import (
    answer,
    check_split,
    choice,
    headline,
    label_map_of,
    points,
    scored_students,
    student_numbers,
)
from tests.benchmarks.proof.cost import costs, measured_parts
from tests.benchmarks.proof.pictures import draw_all
from tests.benchmarks.proof.plan import HEADLINE, PLAN, TERMS, Folders, Plan, Question, load_plan
from tests.benchmarks.proof.tables import tables
from tests.benchmarks.proof.work import TEACHER_FILE, make_everything, make_what_is_asked

RESULTS = Path("tests/benchmarks/results/proof.json")
PICTURES = Path("docs")
PARTS_FILE = "cost.json"


@click.command()
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at a time.")
@click.option(
    "--plan",
    "path",
    type=click.Path(path_type=Path),
    default=PLAN,
    show_default=True,
    help="Of another one nothing is written.",
)
@click.option("--question", "chosen", multiple=True, help="Answer only this one again; repeatable.")
def main(jobs: int, path: Path, chosen: tuple[str, ...]) -> None:
    """Dump, train and score what is missing, then print the tables and write them down."""
    try:
        plan, folders = load_plan(path), Folders()
        unknown = [name for name in chosen if name not in plan.questions]
        if unknown:
            raise click.UsageError(f"no question {unknown[0]}; there are: {', '.join(plan.questions)}")
        if chosen and path != PLAN:
            raise click.UsageError(f"--question answers questions of {PLAN} anew; another plan is done as a whole")
        if chosen:
            before = read_results()
            before["questions"] = kept_answers(before, plan, chosen)
            make_what_is_asked(plan, folders, chosen, jobs)
            numbers = with_answers(before, plan, folders, chosen)
        else:
            make_everything(plan, folders, jobs)
            numbers = proof(plan, folders)
    except PolarDistillError as error:
        raise click.ClickException(error.message) from error
    click.echo("\n" + tables(numbers, plan))
    if path == PLAN:
        write_json(RESULTS, numbers)
        click.echo(f"\nwritten to {RESULTS} and {', '.join(map(str, draw_all(numbers, PICTURES)))}")


def read_results() -> dict[str, Any]:
    """The numbers of the last proof.

    Raises:
        DataError: there are none.
    """
    try:
        numbers: dict[str, Any] = json.loads(RESULTS.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{RESULTS} cannot be read ({error}): run the proof without --question first") from error
    return numbers


def proof(plan: Plan, folders: Folders) -> dict[str, Any]:
    """The numbers of the proof, mIoU in points of 100."""
    teacher = read_report(folders.runs / TEACHER_FILE)
    check_split(teacher, plan.split, folders.runs / TEACHER_FILE)
    parts = cost_parts(folders)
    numbers = {
        "choice": choice(plan, folders),
        "teacher_miou": 100 * teacher["miou"],
        "teacher_iou": {name: points(value) for name, value in teacher["iou"].items()},
        "cost": costs(parts),
        "cost_parts": parts,
    }
    return with_answers(numbers, plan, folders, list(plan.questions))


def with_answers(numbers: Mapping[str, Any], plan: Plan, folders: Folders, names: Sequence[str]) -> dict[str, Any]:
    """Numbers of the proof in which some questions are answered anew, and the other answers stay.

    Raises:
        DataError: an answer that stays has a student that was trained anew with another score.
    """
    label_map = label_map_of(plan, folders)
    scored = scored_students(plan, folders, names)
    students = {name: student_numbers(student) for name, student in scored.items()}
    before = numbers.get("questions", {})
    for name in before.keys() - set(names):
        check_same_scores(name, plan.questions[name], numbers["students"], students)
    known = {**before, **{name: answer(plan.questions[name], scored, label_map) for name in names}}
    questions = {name: known[name] for name in plan.questions if name in known}
    students = {**numbers.get("students", {}), **students}
    compared = dict.fromkeys(name for question in questions for name in plan.questions[question].students())
    return {
        **headline(questions[HEADLINE]),
        **{f"cost_ratio_{row['experiments']}": row["ratio"] for row in numbers["cost"]},
        **{name: numbers[name] for name in ("teacher_miou", "teacher_iou", "choice", "cost", "cost_parts")},
        TERMS: {row["student"]: row for row in questions[TERMS]["comparisons"]},
        HEADLINE: {row["student"].removeprefix("full_"): row for row in questions[HEADLINE]["comparisons"]},
        "questions": questions,
        "students": {name: students[name] for name in compared},
    }


def kept_answers(numbers: Mapping[str, Any], plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """Answers that stay when some questions are answered anew: those to what the plan asks now.

    Raises:
        DataError: one that every plan asks is not among them.
    """
    found = {name: known for name, known in numbers.get("questions", {}).items() if name not in names}
    kept = {
        name: known for name, known in found.items() if name in plan.questions and plan.questions[name].is_of(known)
    }
    for name in (HEADLINE, TERMS):
        if name not in {*kept, *names}:
            raise DataError(f"{RESULTS} does not answer what {PLAN} asks now as {name}: give --question {name}, too")
    for name in found.keys() - kept.keys():
        click.echo(f"note: the plan does not ask {name} as it was answered; that answer is dropped", err=True)
    return kept


def check_same_scores(name: str, question: Question, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to keep an answer of whose students one has other scores now.

    Raises:
        DataError: names both.
    """
    for student in question.students():
        if student in now and now[student]["by_seed"] != before[student]["by_seed"]:
            raise DataError(f"{student} has other scores now than in the answer to {name}: give --question {name}, too")


def cost_parts(folders: Folders, repeats: int = 3) -> dict[str, float]:
    """The measured parts of the costs; measured once, with nothing beside."""
    path = folders.runs / PARTS_FILE
    if not path.is_file():
        click.secho("\nmeasure the costs at full size", bold=True)
        write_json(path, measured_parts(repeats))
    numbers: dict[str, float] = json.loads(path.read_text())
    return numbers


if __name__ == "__main__":
    main()
