"""Pictures of the same scans as ground truth, every experiment's student and the teacher see them."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.image
import numpy as np
import torch
from tqdm import tqdm

from common.base.errors import DataError
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from common.targets.teacher import Teacher
from stage2_train_student.comparison.experiments import Experiment
from stage2_train_student.evaluation.evaluate import student_logits
from stage2_train_student.evaluation.picture_sources import Viewers, live_teacher, scan_picture
from stage2_train_student.evaluation.render import (
    ScanPicture,
    class_colours,
    error_colours,
    points_image,
    share_right,
)
from stage2_train_student.training.runs import load_student, run_weights

SIZE = 480


class Prediction(NamedTuple):
    """What somebody predicts, and where that is wrong: PNG as data URIs; without labels there is no picture of errors.

    The note says which share of the points is right.
    """

    name: str
    note: str
    labels: str
    errors: str


class ScanPictures(NamedTuple):
    """Pictures of one scan: ground truth, empty without labels, then each experiment and last the teacher."""

    name: str
    truth: str
    predictions: list[Prediction]


def draw_scans(
    experiments: list[Experiment],
    dataset: Dataset,
    scans: Sequence[ScanId],
    teacher: Teacher | None,
    device: torch.device,
    radius: float,
) -> list[ScanPictures]:
    """Run the student of each experiment's first seed, and the teacher on the first one's grid, on some scans.

    All networks are on `device`; pictures show `radius` metres each way.

    Raises:
        CheckpointError: a run has saved no student.
        DataError: a scan cannot be read.
    """
    targets = None if teacher is None else live_teacher(teacher, [], dataset.label_map)
    found: dict[ScanId, list[ScanPicture]] = {scan: [] for scan in scans}
    for experiment in tqdm(experiments, desc="pictures", unit="student"):
        run = experiment.runs[0]
        student, _ = load_student(run.settings, run_weights(run.folder), device)
        viewers = Viewers(run.settings.grid.grid(), device, student_logits(student), targets, "")
        for scan in scans:
            found[scan].append(scan_picture(dataset, scan, viewers))
        targets = None  # The teacher has been drawn, beside the first student.
    names = [experiment.name for experiment in experiments]
    return [scan_pictures(str(scan), names, found[scan], dataset.label_map, radius) for scan in scans]


def scan_pictures(
    scan: str, names: list[str], pictures: list[ScanPicture], label_map: LabelMap, radius: float
) -> ScanPictures:
    """Draw a scan that each named experiment's student has predicted, and the first one's teacher."""
    first, colours = pictures[0], class_colours(label_map)
    points, truth = first.points, first.truth

    def drawn(colour_of_point: np.ndarray) -> str:
        return png_uri(points_image(points, colour_of_point, radius, SIZE))

    predictions = []
    for name, labels in zip([*names, "teacher"], [*(one.student for one in pictures), first.teacher], strict=True):
        if labels is not None:
            note = "" if truth is None else share_right(labels, truth)
            errors = "" if truth is None else drawn(error_colours(labels, truth))
            predictions.append(Prediction(name, note, drawn(colours[labels]), errors))
    return ScanPictures(scan, "" if truth is None else drawn(colours[truth]), predictions)


def png_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as PNG inside a data URI."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def default_scan(experiments: list[Experiment], dataset: Dataset) -> ScanId:
    """The middle one of the labelled scans that the experiments are validated on.

    Raises:
        DataError: none of them is on this disk.
    """
    validated = experiments[0].settings.validate_on or ["val"]
    scans = [scan for scan in dataset.select(validated).scans if dataset.has_labels(scan)]
    if not scans:
        raise DataError(
            f"{dataset.root}: no labelled scan of {', '.join(validated)} here to draw. Name one with --scan."
        )
    return scans[len(scans) // 2]
