"""Which scans an experiment trains on and validates on, and which of their labels it uses."""

from collections.abc import Iterable
from itertools import groupby, islice
from typing import NamedTuple

import click

from common.base.errors import DataError, SettingsError
from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.training.processes import ALONE, Processes
from stage2_train_student.evaluation.evaluate import require_labels
from stage2_train_student.settings import ExperimentSettings


class Scans(NamedTuple):
    """Scans to train on and to validate on."""

    train: list[ScanId]
    validation: list[ScanId]


def choose_scans(settings: ExperimentSettings, dataset: Dataset, processes: Processes = ALONE) -> Scans:
    """Scans of the experiment; validation is left out, with a note, when none of its sequences is on this disk.

    Raises:
        DataError: there is no scan to learn from, or one to validate on has no labels.
    """

    def say(note: str) -> None:
        if processes.first:
            click.echo(f"note: {note}", err=True)

    selected, notes = dataset.select(settings.train)
    for note in notes:
        say(f"training: {note}")
    train, note = scans_that_teach(settings, dataset, selected)
    if note:
        say(note)
    try:
        validation = dataset.select(settings.validate_on).scans if settings.validate_on else []
    except DataError as error:
        say(f"no validation, so no best student will be chosen: {error.message}")
        validation = []
    require_labels(dataset, validation)
    seen = set(train).intersection(validation)
    if seen:
        say(
            f"{len(seen)} of {len(validation)} validation scans are training scans too; mIoU will not say how well the "
            "student does on others"
        )
    return Scans(train, validation)


def scans_that_teach(settings: ExperimentSettings, dataset: Dataset, scans: list[ScanId]) -> tuple[list[ScanId], str]:
    """The training scans from which something is learned, and what to say of those without labels.

    Without a teacher a scan without labels would only move batch statistics and the optimiser's momentum.

    Raises:
        DataError: nothing is learned from any.
    """
    if settings.targets == "none":
        scans = every_nth(scans, settings.label_every)
    labelled = [scan for scan in scans if dataset.has_labels(scan)]
    without = len(scans) - len(labelled)
    if not without:
        return scans, ""
    if settings.targets != "none":
        count = f"{without} of {len(scans)}" if labelled else f"all {len(scans)}"
        return scans, f"{count} training scans have no label file; the student learns from their targets alone"
    if not labelled:
        raise DataError(
            f"{dataset.root}: none of the {len(scans)} training scans has a label file, the first is {scans[0]}, and "
            "with targets: none there is nothing else to learn from. Choose labelled splits (setting train), complete "
            "the download, or use a teacher's targets."
        )
    return labelled, f"training without {without} of {len(scans)} scans, which have no label file (targets: none)"


def every_nth(scans: Iterable[ScanId], step: int) -> list[ScanId]:
    """Every so many-th scan of each sequence, the first one included, in their order."""
    return [
        scan for _, group in groupby(scans, key=lambda scan: scan.sequence) for scan in islice(group, None, None, step)
    ]


def labelled_scans(settings: ExperimentSettings, dataset: Dataset) -> frozenset[ScanId] | None:
    """Training scans whose labels are used, None for all.

    Raises:
        SettingsError: `labels` names none of the training scans.
        DataError: none of those that it names has a label file.
    """
    if settings.labels is None and settings.label_every == 1:
        return None
    named = settings.labels or settings.train
    labelled = frozenset(every_nth(dataset.select(named).scans, settings.label_every))
    if labelled.isdisjoint(dataset.select(settings.train).scans):
        raise SettingsError(
            f"labels: none of the training scans ({', '.join(settings.train)}) is in {', '.join(named)}; "
            "name splits or sequences that are in train as well"
        )
    if not any(dataset.has_labels(scan) for scan in labelled):
        every = f" (one in {settings.label_every})" if settings.label_every > 1 else ""
        raise DataError(
            f"labels: none of the {len(labelled)} scans of {', '.join(named)}{every} has a label file; name "
            "labelled splits or sequences (labels), other scans of them (label_every), or use all labels "
            "(labels=null label_every=1)"
        )
    return labelled
