"""What the page shows about a scan: the scan itself, and what student and teacher say about it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from common.base.errors import DataError
from common.base.text import shortened
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.scan_id import ScanId
from stage2_train_student.evaluation.own_files import own_scans
from stage2_train_student.evaluation.picture_sources import ScanTargets
from stage2_train_student.predictor import Predictor
from stage2_train_student.viewing.page import Opinion, ViewedScan

OF_A_BAG = 10
"""Clouds of a bag that are shown, spread over it: each makes the page 2 MB larger."""


class NamedScan(NamedTuple):
    """A scan, and what the page calls it."""

    name: str
    dataset: Dataset
    scan: ScanId


def file_scans(paths: Iterable[Path], label_map: LabelMap, overrides: Iterable[str]) -> Iterator[NamedScan]:
    """Scans of files and folders, and some of each bag, see `own_scans`."""
    for found in own_scans(paths, label_map, overrides):
        scans = found.scans
        if found.bag is not None:
            rows = np.linspace(0, len(scans) - 1, min(len(scans), OF_A_BAG)).astype(int)
            scans = [scans[row] for row in rows]
        for scan in scans:
            yield NamedScan(found.title(scan), found.dataset, scan)


def viewed_scans(scans: Iterable[NamedScan], student: Predictor, teacher: ScanTargets | None) -> list[ViewedScan]:
    """What there is to show about scans; those without points are left out, with a note.

    Raises:
        DataError: one cannot be read, or none has points.
        StoreError: the teacher's targets come from a store that does not have them.
    """
    found = [viewed_scan(named, student, teacher) for named in scans]
    empty = [scan.name for scan in found if not len(scan.points)]
    if len(empty) == len(found):
        raise DataError(f"{shortened(empty)}: nothing came back in these scans, so there is nothing to show.")
    if empty:
        click.echo(f"note: left out, since nothing came back: {shortened(empty)}", err=True)
    return [scan for scan in found if len(scan.points)]


def viewed_scan(named: NamedScan, student: Predictor, teacher: ScanTargets | None) -> ViewedScan:
    """What there is to show about a scan; for errors see `viewed_scans`."""
    source = named.dataset.read(named.scan)
    opinions = [opinion("student", student, source.points)]
    if teacher is not None:
        model = replace(student.model, logits=lambda batch: teacher(named.scan, source.points, batch).logits)
        opinions.append(opinion("teacher", replace(student, model=model), source.points))
    return ViewedScan(named.name, source.points, source.labels, opinions)


def opinion(who: str, predictor: Predictor, points: np.ndarray) -> Opinion:
    """What somebody says about the points of a scan."""
    classes, probabilities = predictor.predict(points)
    return Opinion(who, classes, probabilities.max(axis=1))
