"""Does distilling from a cache work, when, and what does it cost?

    make proof                 (python -m tests.benchmarks.proof; resumable)

Simulated streets, a teacher trained on the training streets only, and the students of `configs/proof/plan.yaml`, scored
on three streets that no model trained on and that chose nothing. A run is scored by its last student. Writes
`tests/benchmarks/results/proof.json`, the pictures of `docs/proof.md`, and prints its tables.
"""

import json
from pathlib import Path
from typing import Any

import click

from common.base.errors import PolarDistillError
from common.base.files import write_atomically
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
from tests.benchmarks.proof.plan import HEADLINE, PLAN, TERMS, Folders, Plan, load_plan
from tests.benchmarks.proof.tables import tables
from tests.benchmarks.proof.work import TEACHER_FILE, make_everything

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
@click.option("--question", "chosen", multiple=True, help="Answer only this one; repeatable. Nothing is written.")
def main(jobs: int, path: Path, chosen: tuple[str, ...]) -> None:
    """Dump, train and score what is missing, then print the tables and write them down."""
    try:
        plan, folders = load_plan(path), Folders()
        unknown = [name for name in chosen if name not in plan.questions]
        if unknown:
            raise click.UsageError(f"no question {unknown[0]}; there are: {', '.join(plan.questions)}")
        make_everything(plan, folders, chosen or list(plan.questions), jobs)
        if chosen:
            return
        numbers = proof(plan, folders)
    except PolarDistillError as error:
        raise click.ClickException(error.message) from error
    click.echo("\n" + tables(numbers, plan))
    if path == PLAN:
        write_atomically(RESULTS, (json.dumps(numbers, indent=1) + "\n").encode())
        click.echo(f"\nwritten to {RESULTS} and {', '.join(map(str, draw_all(numbers, PICTURES)))}")


def proof(plan: Plan, folders: Folders) -> dict[str, Any]:
    """The numbers of the proof, mIoU in points of 100."""
    label_map = label_map_of(plan, folders)
    students = scored_students(plan, folders, list(plan.questions))
    questions = {name: answer(question, students, label_map) for name, question in plan.questions.items()}
    teacher = read_report(folders.runs / TEACHER_FILE)
    check_split(teacher, plan.split, folders.runs / TEACHER_FILE)
    parts = cost_parts(folders)
    cost = costs(parts)
    return {
        **headline(questions[HEADLINE]),
        "teacher_miou": 100 * teacher["miou"],
        **{f"cost_ratio_{row['experiments']}": row["ratio"] for row in cost},
        "terms": {row["student"]: row for row in questions[TERMS]["comparisons"]},
        "few_labels": {row["student"].removeprefix("full_"): row for row in questions[HEADLINE]["comparisons"]},
        "choice": choice(plan, folders),
        "questions": questions,
        "cost": cost,
        "cost_parts": parts,
        "teacher_iou": {name: points(value) for name, value in teacher["iou"].items()},
        "students": {name: student_numbers(student) for name, student in students.items()},
    }


def cost_parts(folders: Folders, repeats: int = 3) -> dict[str, float]:
    """The measured parts of the costs; measured once, with nothing beside."""
    path = folders.runs / PARTS_FILE
    if not path.is_file():
        click.secho("\nmeasure the costs at full size", bold=True)
        write_atomically(path, (json.dumps(measured_parts(repeats)) + "\n").encode())
    numbers: dict[str, float] = json.loads(path.read_text())
    return numbers


if __name__ == "__main__":
    main()
