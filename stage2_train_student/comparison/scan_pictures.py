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
from stage2_train_student.evaluation.picture_sources import live_teacher, scan_picture
from stage2_train_student.evaluation.raster import points_image
from stage2_train_student.evaluation.render import BACKGROUND, class_colours, error_colours, share_right
from stage2_train_student.training.runs import load_student, run_weights

LAYER = "up0e"
SIZE = 480


class Picture(NamedTuple):
    """A PNG as a data URI, what it shows, and a note such as the share of points that are right."""

    title: str
    note: str
    uri: str


class ScanPictures(NamedTuple):
    """Pictures of one scan: what everybody predicts and, below each, where that is wrong.

    Attributes:
        scan: its name.
        truth: None where the scan has no labels.
        predictions: of each experiment and, last, of the teacher where there is one.
        errors: in the same order; empty where the scan has no labels.
    """

    scan: str
    truth: Picture | None
    predictions: list[Picture]
    errors: list[Picture]


def draw_scans(
    experiments: list[Experiment],
    dataset: Dataset,
    scans: Sequence[ScanId],
    teacher: Teacher | None,
    device: torch.device,
    radius: float,
) -> list[ScanPictures]:
    """Run the student of each experiment's first seed, and the teacher, on some scans.

    Args:
        experiments: with saved students.
        dataset: the scans.
        scans: which scans.
        label_map: classes.
        teacher: on the device, None for none; it works on the first experiment's grid.
        device: of all networks.
        radius: metres shown each way.

    Raises:
        CheckpointError: a run has saved no student.
        DataError: a scan cannot be read.
    """
    targets = None if teacher is None else live_teacher(teacher, LAYER, dataset.label_map)
    points: dict[ScanId, np.ndarray] = {}
    truths: dict[ScanId, np.ndarray | None] = {}
    labels: dict[ScanId, list[tuple[str, np.ndarray]]] = {scan: [] for scan in scans}
    of_teacher: dict[ScanId, np.ndarray] = {}
    jobs = [(experiment, scan) for experiment in experiments for scan in scans]
    student, loaded = None, None
    for experiment, scan in tqdm(jobs, desc="pictures", unit="picture"):
        run = experiment.runs[0]
        if loaded is not experiment:
            network, _ = load_student(run.settings, run_weights(run.folder), device)
            student, loaded = student_logits(network), experiment
        grid = experiment.settings.grid.grid()
        wanted = targets if experiment is experiments[0] else None
        picture = scan_picture(dataset, scan, grid, device, student, wanted, LAYER)
        points[scan], truths[scan] = picture.points, picture.truth
        assert picture.student is not None
        labels[scan].append((experiment.name, picture.student))
        if picture.teacher is not None:
            of_teacher[scan] = picture.teacher
    return [
        scan_pictures(
            str(scan),
            points[scan],
            truths[scan],
            [*labels[scan], *([("teacher", of_teacher[scan])] if scan in of_teacher else [])],
            dataset.label_map,
            radius,
        )
        for scan in scans
    ]


def scan_pictures(
    scan: str,
    points: np.ndarray,
    truth: np.ndarray | None,
    predictions: list[tuple[str, np.ndarray]],
    label_map: LabelMap,
    radius: float,
) -> ScanPictures:
    """Draw what is known about a scan.

    Args:
        scan: its name.
        points: float32 [N, 4].
        truth: training labels [N], None where there are none.
        predictions: names, and training labels [N].
        label_map: classes and their colours.
        radius: metres shown each way.
    """
    colours = class_colours(label_map)

    def drawn(title: str, note: str, colour_of_point: np.ndarray) -> Picture:
        return Picture(title, note, png_uri(points_image(points, colour_of_point, BACKGROUND, radius, SIZE, dot=2)))

    return ScanPictures(
        scan,
        None if truth is None else drawn("ground truth", "", colours[truth]),
        [
            drawn(name, "" if truth is None else share_right(labels, truth), colours[labels])
            for name, labels in predictions
        ],
        []
        if truth is None
        else [drawn(f"errors of {name}", "", error_colours(labels, truth)) for name, labels in predictions],
    )


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
