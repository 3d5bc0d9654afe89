"""What an experiment is made of: its source of targets, its student and optimiser, and where a run begins."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import torch

from common.base.devices import CPU
from common.base.errors import SettingsError, StoreError
from common.base.named import named_class
from common.scans.dataset import Dataset
from common.scans.label_map import LabelMap
from common.scans.polar_grid import check_distillable
from common.scans.scan_batch import ScanBatch
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.local_copy import CopySettings, copied_locally
from common.targets.store.skipped import read_skipped
from common.targets.teacher import Teacher, layer_channels
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes
from stage2_train_student.distillation.term import TermContext
from stage2_train_student.distillation.terms import Distillation, teacher_layers, voxel_terms
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.data import StudentData
from stage2_train_student.training.scans import Scans, labelled_scans
from stage2_train_student.training.state import StudentNetworks, StudentState, averaged_copy

STUDENTS = "stage2_train_student.students"

OnlineTargets = Callable[[ScanBatch], TeacherTargets]


class TargetSource(NamedTuple):
    """Where targets come from.

    Attributes:
        store: for `targets: cache`.
        online: for `targets: online`, a function from a batch on the device to its targets.
        channels: of each teacher layer.
        hash: of the store's identity, or of the online teacher's weights.
        skipped: scans that have no targets since the dump could not use them, and why.
    """

    store: TargetStore | None = None
    online: OnlineTargets | None = None
    channels: dict[str, int] = {}
    hash: str | None = None
    skipped: dict[ScanId, str] = {}


def open_targets(
    settings: ExperimentSettings,
    label_map: LabelMap,
    scans: list[ScanId],
    cache: str | Path | None,
    teacher: Teacher | None,
    copies: CopySettings = CopySettings(),
) -> TargetSource:
    """The source of targets that the experiment asks for, checked against it.

    Raises:
        StoreError: the store does not fit, or lacks targets of a training scan.
        SettingsError: what the source needs was not given, or the volume is not one of the dataset's.
    """
    settings.grid.check_fits(label_map)
    if settings.targets == "none":
        return TargetSource()
    grid = settings.grid.grid()
    check_distillable(grid.shape)
    layers, readers = teacher_layers(settings.distillation), voxel_terms(settings.distillation)
    if settings.targets == "online":
        if teacher is None:
            raise SettingsError("targets: online needs the teacher's checkpoint (--teacher)")
        teacher = teacher.for_dataset(label_map)
        online = partial(teacher.targets, layers=layers, voxel_features=bool(readers))
        return TargetSource(online=online, channels=layer_channels(teacher, layers), hash=teacher.hash)
    if cache is None:
        raise SettingsError("targets: cache needs the target store (--cache)")
    store = copied_locally(TargetStore.open(cache), copies)
    store.check_fits(grid, label_map, layers)
    check_voxel_features(store, settings, readers)
    skipped = check_complete(store, scans)
    return TargetSource(store=store, channels=store.identity.layers, hash=store.identity.hash, skipped=skipped)


def check_voxel_features(store: TargetStore, settings: ExperimentSettings, readers: list[str]) -> None:
    """Refuse a store that lacks the voxel features which some terms read.

    Raises:
        StoreError: it keeps none.
        SettingsError: they would have to be composed from those of anchors.
    """
    if readers and not store.identity.voxel_features:
        raise StoreError(
            f"{store.location}: keeps no voxel features, which {', '.join(readers)} read. Dump them into another "
            f"--cache (--set profile=full --set layers=[{','.join(teacher_layers(settings.distillation))}]), or set "
            "these weights to 0."
        )
    if readers and settings.views == "anchors":
        raise SettingsError(
            f"views: anchors: a rotated scan has other voxels than its anchors, so their features do not serve "
            f"{', '.join(readers)}; set views=replay, or these weights to 0"
        )


def check_complete(store: TargetStore, scans: list[ScanId]) -> dict[ScanId, str]:
    """Scans of which the dump recorded that it could not use them, and why; others must have all their targets.

    Raises:
        StoreError: says how many have none, and the first; or none has any.
    """
    finished = store.finished()
    views = range(store.identity.views.count)
    absent = [(scan, view) for scan in scans for view in views if (scan, view) not in finished]
    reasons = read_skipped(store, finished) if absent else {}
    missing = list(dict.fromkeys(scan for scan, view in absent if (scan, view) not in reasons))
    if missing:
        raise StoreError(
            f"{store.location}: {len(missing)} of {len(scans)} training scans have no complete targets, the first is "
            f"{missing[0]}. Run polar-distill dump again: it dumps exactly what is missing."
        )
    skipped = {scan: reasons[scan, view] for scan, view in absent}
    if skipped and len(skipped) == len(scans):
        scan, reason = next(iter(skipped.items()))
        raise StoreError(
            f"{store.location}: the dump could use none of the {len(scans)} training scans; "
            f"the reason for {scan}: {reason}"
        )
    return skipped


def with_targets(scans: Scans, source: TargetSource, processes: Processes = ALONE) -> Scans:
    """The scans without those that the dump skipped, which are named."""
    if source.skipped and processes.first:
        scan, reason = next(iter(source.skipped.items()))
        click.echo(
            f"note: training without {len(source.skipped)} of {len(scans.train)} scans, which the dump skipped; the "
            f"first is {scan}: {reason}",
            err=True,
        )
    return scans._replace(train=[scan for scan in scans.train if scan not in source.skipped])


def student_data(
    settings: ExperimentSettings,
    dataset: Dataset,
    source: TargetSource,
    device: torch.device = CPU,
    scans: Sequence[ScanId] = (),
) -> StudentData:
    """The training scans' loader, for batches that are used on a device.

    Raises:
        SettingsError: scans are to be mixed, and `scans`, those to train on, are not two at least.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    return StudentData(settings, dataset, source.store, labelled_scans(settings, dataset), tuple(scans), stream)


def new_student(settings: ExperimentSettings, label_map: LabelMap) -> Student:
    """A student as the settings describe it, with fresh weights."""
    network = named_class(settings.student.network, STUDENTS, Student, "student")
    return network.build(settings.student, settings.grid.shape, len(label_map.classes))


def new_state(
    settings: ExperimentSettings, label_map: LabelMap, source: TargetSource, device: torch.device
) -> StudentState:
    """Student, adapters and optimiser before the first step.

    Raises:
        SettingsError: the device cannot compute in the precision asked for.
    """
    if settings.precision == "float16" and device.type != "cuda":
        raise SettingsError(
            f"precision: float16 needs CUDA, this run is on {device.type}; choose bfloat16 or float32 here"
        )
    student = new_student(settings, label_map).to(device)
    class_weights = torch.from_numpy(label_map.class_weights())
    context = TermContext(settings.distillation, source.channels, student.layers, class_weights)
    distillation = Distillation(context).to(device)
    parameters = [*student.parameters(), *distillation.parameters()]
    optimiser = torch.optim.Adam(
        parameters, lr=settings.optimiser.learning_rate, weight_decay=settings.optimiser.weight_decay, fused=True
    )
    average = averaged_copy(student) if settings.averaging is not None else None
    if settings.compile:
        # In place and after the copy: the state dict keeps its names, and the average, seldom run, stays as it is.
        student.compile()
    # At work for float16 alone, whose small gradients would vanish; for others it does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    return StudentState(StudentNetworks(student, distillation, average), optimiser, scaler, targets_hash=source.hash)


def check_divisible(settings: ExperimentSettings, processes: Processes) -> None:
    """Refuse batches of which the processes would have unequal shares.

    Raises:
        SettingsError: says which sizes do.
    """
    if settings.batch_size % processes.count:
        fitting = -(-settings.batch_size // processes.count) * processes.count
        raise SettingsError(
            f"batch_size: {settings.batch_size} scans do not divide among {processes.count} processes (it counts the "
            f"scans of all of them together); set batch_size={fitting}, or start another number of processes"
        )
