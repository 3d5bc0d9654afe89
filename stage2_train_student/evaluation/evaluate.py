"""mIoU over all points of a dataset, by class and distance, and agreement with a teacher."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.base.errors import DataError
from common.base.text import aligned_table
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from common.targets.teacher import Teacher
from common.training.metrics import RANGE_STARTS, ConfusionMatrix, add_up, count_by_distance
from common.training.predictor import Predictor, VoxelLogits
from stage2_train_student.students.student import Student

TOTALS = {
    "mIoU": "miou",
    "over all classes": "miou_all_classes",
    "as the benchmark": "miou_benchmark",
    "accuracy": "accuracy",
}
"""Numbers of a report over all classes together, by what the table calls them."""


@dataclass(frozen=True)
class Evaluation:
    """Confusion matrices of a model over all points of some scans.

    Attributes:
        by_range: rows are ground truth; one for each distance range of `RANGE_STARTS`.
        agreement: rows are a teacher's predictions, over points with and without a label; None without a teacher.
    """

    by_range: tuple[ConfusionMatrix, ...]
    agreement: tuple[ConfusionMatrix, ...] | None = None

    @property
    def matrix(self) -> ConfusionMatrix:
        """All distances together."""
        return add_up(self.by_range, len(self.by_range[0].counts))


def student_logits(student: Student) -> VoxelLogits:
    """A student as a function from a batch to voxel logits; puts it into eval mode."""
    student.eval()
    return lambda batch: student(batch).voxel_logits


def teacher_logits(teacher: Teacher, label_map: LabelMap) -> VoxelLogits:
    """A teacher as a function from a batch to voxel logits.

    Raises:
        SettingsError: it has other classes than the dataset.
    """
    fitting = teacher.for_dataset(label_map)
    return lambda batch: fitting.targets(batch, ()).logits


def evaluate(
    predictor: Predictor, dataset: Dataset, scans: list[ScanId], teacher: Predictor | None = None
) -> Evaluation:
    """Confusion matrices over all points of labelled scans, by horizontal distance from the sensor.

    Predictions are also compared with those of a teacher, where there is one.

    Raises:
        DataError: a scan has no labels.
    """
    require_labels(dataset, scans)
    compared = None if teacher is None else teacher.predict(dataset, scans)
    by_range = agreement = (ConfusionMatrix.empty(dataset.classes),) * len(RANGE_STARTS)
    for _, predicted, source in predictor.predict(dataset, scans, "evaluate"):
        assert source.labels is not None
        distance = np.hypot(source.points[:, 0], source.points[:, 1])
        found = count_by_distance(source.labels, predicted, distance, dataset.classes)
        by_range = tuple(map(ConfusionMatrix.__add__, by_range, found))
        if compared is not None:
            found = count_by_distance(next(compared).labels, predicted, distance, dataset.classes)
            agreement = tuple(map(ConfusionMatrix.__add__, agreement, found))
    return Evaluation(by_range, None if teacher is None else agreement)


def require_labels(dataset: Dataset, scans: list[ScanId]) -> None:
    """Say that scans cannot be evaluated before time is spent on them.

    Raises:
        DataError: a scan has no labels; says how many, and the first.
    """
    unlabelled = dataset.unlabelled(scans)
    if unlabelled:
        raise DataError(
            f"{len(unlabelled)} of {len(scans)} scans have no labels, the first is {unlabelled[0]}, so mIoU cannot "
            "be computed. Choose labelled splits; predict needs no labels."
        )


def report(matrix: ConfusionMatrix, label_map: LabelMap) -> dict[str, Any]:
    """Numbers of an evaluation, ready for JSON: shares in 0..1, None for a class, or points, that do not occur.

    `miou` averages over the classes that occur in the ground truth, `miou_all_classes` over all, and `miou_benchmark`
    as the dataset's benchmark does (`LabelMap.absent_classes`).
    """
    return {
        "miou": known(matrix.mean_iou()),
        "miou_all_classes": known(matrix.mean_iou_of_benchmark("zero")),
        "miou_benchmark": known(matrix.mean_iou_of_benchmark(label_map.absent_classes)),
        "accuracy": known(matrix.accuracy()),
        "points": matrix.labelled_points,
        "iou": matrix.iou_of(label_map.names),
    }


def full_report(evaluation: Evaluation, label_map: LabelMap) -> dict[str, Any]:
    """`report`, and the same by distance, the confusion matrix, and agreement with a teacher where it was asked for."""
    numbers = report(evaluation.matrix, label_map)
    # Metres; the last range has no end.
    ranges = zip(RANGE_STARTS, (*RANGE_STARTS[1:], None), strict=True)
    numbers["ranges"] = [
        {"from": start, "to": end, **report(matrix, label_map)}
        for (start, end), matrix in zip(ranges, evaluation.by_range, strict=True)
    ]
    counts = evaluation.matrix.counts.tolist()
    numbers["confusion"] = {"rows": "ground truth", "classes": label_map.names, "counts": counts}
    if evaluation.agreement is not None:
        total = add_up(evaluation.agreement, len(label_map.classes))
        numbers["agreement"] = {
            "share": known(total.accuracy()),
            "points": total.labelled_points,
            "ranges": [known(matrix.accuracy()) for matrix in evaluation.agreement],
            "of_teacher_class": dict(zip(label_map.names[1:], map(known, total.recall()[1:]), strict=True)),
        }
    return numbers


def known(share: float) -> float | None:
    """None for NaN, which JSON does not know."""
    return None if np.isnan(share) else float(share)


def table(numbers: dict[str, Any]) -> str:
    """An evaluation as text, from `full_report`."""
    head = f"IoU in %, - does not occur; labelled points {numbers['points']}"
    return "\n".join([head, *aligned_table(table_rows(numbers))])


def table_rows(numbers: dict[str, Any]) -> list[list[str]]:
    """IoU of each class and what they add up to, over all points and by distance; the first row is the head."""
    ranges = numbers["ranges"]
    names = [f"{part['from']:.0f}-{part['to']:.0f} m" if part["to"] else f"{part['from']:.0f}+ m" for part in ranges]
    shares = {name: [iou, *(part["iou"][name] for part in ranges)] for name, iou in numbers["iou"].items()}
    for title, key in TOTALS.items():
        shares[title] = [part[key] for part in (numbers, *ranges)]
    if "agreement" in numbers:
        shares["as the teacher"] = [numbers["agreement"]["share"], *numbers["agreement"]["ranges"]]
    rows = [["", "all", *names]]
    return rows + [[name, *("-" if one is None else f"{100 * one:.2f}" for one in row)] for name, row in shares.items()]
