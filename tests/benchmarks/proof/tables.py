"""The answers as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from stage2_train_student.comparison.statistics import p_value_text
from tests.benchmarks.proof.cost import cost_table
from tests.benchmarks.proof.plan import BASELINE, FULL, Plan

CLASSES_OF = (BASELINE, FULL)


def tables(numbers: Mapping[str, Any], plan: Plan) -> str:
    """All of them, each under its question."""
    parts = ["### What chose the settings\n\n" + "\n".join(choice_table(numbers["choice"]))]
    for question in numbers["questions"].values():
        parts.append(f"### {question['asked']}\n\n" + "\n".join(question_table(question, numbers["students"], plan)))
    parts.append("### By class\n\n" + "\n".join(class_table(numbers["students"], numbers["teacher_iou"])))
    parts.append("### What it costs\n\n" + "\n".join(cost_table(numbers["cost"])))
    return "\n\n".join(parts)


def choice_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Scores of the settings tried."""
    lines = ["| tried | mIoU on the validation street |", "| --- | --- |"]
    return [*lines, *(f"| {row['tried'].replace('_', ' ')} | {row['miou']:.1f} |" for row in rows)]


def question_table(question: Mapping[str, Any], students: Mapping[str, Any], plan: Plan) -> list[str]:
    """Students of a question, the references first, and the differences."""
    rows = {row["student"]: row for row in question["comparisons"]}
    names = dict.fromkeys([*(row["reference"] for row in rows.values() if row["reference"] not in rows), *rows])
    lines = [
        "| student | mIoU in % (seeds) | compared with | gain, 95 % interval | p |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        about = plan.students[name].about
        values = list(students[name]["by_seed"].values())[: question["seeds"]]
        cells = [
            f"{name}: {about}" if about else name,
            f"{mean(values):.1f} ({len(values)})",
            *gain_cells(rows.get(name)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def gain_cells(row: Mapping[str, Any] | None) -> list[str]:
    """What a student is compared with, the gain, and its p."""
    if row is None:
        return ["", "", ""]
    low, high = row["interval"]
    return [row["reference"], f"{row['gain']:+.1f} ({low:+.1f} to {high:+.1f})", p_value_text(row["p_value"])]


def class_table(students: Mapping[str, Any], teacher: Mapping[str, float | None]) -> list[str]:
    """IoU of every class; nothing for one that neither occurs nor was predicted."""

    def cell(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{mean(known):.1f}" if known else ""

    lines = [f"| class | {' | '.join(CLASSES_OF)} | teacher |", "| --- |" + " --- |" * (len(CLASSES_OF) + 1)]
    for name, value in teacher.items():
        cells = [cell(students[student]["iou"][name]) for student in CLASSES_OF]
        lines.append(f"| {name} | {' | '.join([*cells, cell([value])])} |")
    return lines
