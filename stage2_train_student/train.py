"""Stage two: train a PolarNet student with the teacher's targets."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import torch
from tqdm import tqdm

from common.checkpoint import save_checkpoint
from common.dataset import select_scans
from common.errors import DataError, SettingsError, StoreError, TrainingError
from common.label_map import LabelMap, load_label_map
from common.polar_grid import check_distillable
from common.scan_batch import ScanBatch
from common.segmentation_loss import segmentation_terms
from common.semantic_kitti import ScanId
from common.signals import StopRequest
from common.target_store import TargetStore
from common.target_store.local_copy import CopySettings, copied_locally
from common.teacher_targets import TeacherTargets, batch_targets
from stage2_train_student.distillation import Distillation
from stage2_train_student.evaluate import evaluate, refuse_unlabelled, report, student_logits
from stage2_train_student.polarnet import PolarNet
from stage2_train_student.recorder import Recorder
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.student_data import StudentBatch, StudentData
from stage2_train_student.training_state import BEST_STUDENT, STATE_FILE, TrainingState, published_student

OnlineTargets = Callable[[ScanBatch], TeacherTargets]


class TargetSource(NamedTuple):
    """Where targets come from.

    Attributes:
        store: for `targets: cache`.
        online: for `targets: online`, a function from a batch on the device to its targets.
        channels: of each teacher layer.
    """

    store: TargetStore | None = None
    online: OnlineTargets | None = None
    channels: dict[str, int] = {}


class Scans(NamedTuple):
    """Scans to train on and to validate on."""

    train: list[ScanId]
    validation: list[ScanId]


def run(
    settings: ExperimentSettings,
    data: Path,
    folder: Path,
    device: torch.device,
    cache: str | Path | None = None,
    teacher: Path | None = None,
    resume: bool = False,
    copies: CopySettings = CopySettings(),
) -> TrainingState:
    """Train a student into `folder`.

    Args:
        settings: the experiment.
        data: folder that holds `sequences/`.
        folder: of the run.
        device: to train on.
        cache: target store, for `targets: cache`.
        teacher: published-layout checkpoint, for `targets: online`.
        resume: continue the run in `folder`.
        copies: where what is read from a target store at a URL is kept.
    """
    torch.manual_seed(settings.seed)
    label_map = load_label_map(settings.dataset)
    scans = choose_scans(settings, data, label_map)
    source = open_targets(settings, label_map, scans.train, device, cache, teacher, copies)
    dataset = student_data(settings, data, label_map, source)
    state = new_state(settings, label_map, source, device)
    start_or_resume(state, settings, folder, resume)
    weights = torch.from_numpy(label_map.class_weights()).to(device)
    with Recorder(folder, settings, state.step) as recorder, StopRequest() as stop:
        while state.epoch < settings.epochs and not (stop or reached(state, settings)):
            train_epoch(state, settings, dataset, scans.train, source, weights, recorder, folder, stop, device)
            if not state.step_in_epoch and state.epoch % settings.validate_every == 0:
                validate(state, dataset, scans.validation, recorder, folder, device)
            state.save(folder, settings)
    return state


def train_epoch(
    state: TrainingState,
    settings: ExperimentSettings,
    dataset: StudentData,
    scans: list[ScanId],
    source: TargetSource,
    class_weights: torch.Tensor,
    recorder: Recorder,
    folder: Path,
    stop: StopRequest,
    device: torch.device,
) -> None:
    """Train from where the state stands to the end of the epoch, the step limit, or a request to stop."""
    steps = math.ceil(len(scans) / settings.batch_size)
    batches = dataset.batches(scans, settings.batch_size, state.epoch, state.step_in_epoch, settings.loading_threads)
    with tqdm(total=steps, initial=state.step_in_epoch, unit="step", desc=f"epoch {state.epoch + 1}") as bar:
        clock = time.perf_counter()
        for loaded in batches:
            waited = time.perf_counter() - clock
            terms = train_step(state, loaded, source.online, class_weights, device)
            state.step += 1
            state.step_in_epoch += 1
            seconds = time.perf_counter() - clock
            recorder.record("train", state.step, {**terms, "seconds": seconds, "waited": waited}, epoch=state.epoch)
            bar.set_postfix(loss=f"{terms['loss']:.3f}")
            bar.update()
            if stop or reached(state, settings):
                break
            if settings.save_every and state.step % settings.save_every == 0:
                state.save(folder, settings)
            clock = time.perf_counter()
    if state.step_in_epoch == steps:
        state.epoch, state.step_in_epoch = state.epoch + 1, 0


def train_step(
    state: TrainingState,
    loaded: StudentBatch,
    online: OnlineTargets | None,
    class_weights: torch.Tensor,
    device: torch.device,
) -> dict[str, float]:
    """One step of the optimiser.

    Returns:
        every loss term, unweighted, and the weighted total `loss`.

    Raises:
        TrainingError: the loss is not finite; the weights stay as they were.
    """
    state.student.train()
    state.distillation.train()
    batch = loaded.batch.to(device)
    targets = targets_of(loaded, batch, online, device)
    loss, terms = losses(state.student, state.distillation, batch, targets, class_weights)
    if not torch.isfinite(loss):
        raise TrainingError(
            f"step {state.step + 1}: the loss is {loss.item()} for scans {', '.join(map(str, loaded.scans))} "
            f"({', '.join(f'{name} {value.item():.4g}' for name, value in terms.items())}). Lower "
            "optimiser.learning_rate, or look at these scans; the last saved state is intact."
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    state.optimiser.step()
    return {name: float(value.detach()) for name, value in {**terms, "loss": loss}.items()}


def targets_of(
    loaded: StudentBatch, batch: ScanBatch, online: OnlineTargets | None, device: torch.device
) -> TeacherTargets | None:
    """The teacher's targets on the device: decoded there from the cache, or from the live teacher, or none."""
    if loaded.targets:
        return batch_targets([targets.to(device).decode() for targets in loaded.targets])
    return online(batch) if online else None


def losses(
    student: PolarNet,
    distillation: Distillation,
    batch: ScanBatch,
    targets: TeacherTargets | None,
    class_weights: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Total loss and every unweighted term: L_seg + weights * (logit, vpd, lwd), Jiang et al. 2023."""
    outputs = student(batch)
    terms = segmentation_terms(outputs.voxel_logits, batch.voxel_labels, class_weights)
    total = terms["cross_entropy"] + terms["lovasz"]
    if targets is not None:
        distilled = distillation(outputs, targets, batch)
        total = total + distillation.total(distilled)
        terms = terms | distilled
    return total, terms


def validate(
    state: TrainingState,
    dataset: StudentData,
    scans: list[ScanId],
    recorder: Recorder,
    folder: Path,
    device: torch.device,
) -> None:
    """mIoU over all points of the validation scans; keeps the student if it is the best so far."""
    if not scans:
        return
    matrix = evaluate(
        student_logits(state.student), dataset.root, scans, dataset.grid, dataset.label_map, device, "validate"
    )
    numbers = report(matrix, dataset.label_map)
    recorder.record("validation", state.step, {"miou": numbers["miou"]}, epoch=state.epoch, iou=numbers["iou"])
    tqdm.write(f"epoch {state.epoch}: mIoU {100 * numbers['miou']:.2f}")
    if numbers["miou"] > state.best_miou:
        state.best_miou = numbers["miou"]
        save_checkpoint(folder / BEST_STUDENT, published_student(state.student))


def choose_scans(settings: ExperimentSettings, data: Path, label_map: LabelMap) -> Scans:
    """Scans of the experiment; validation is left out, with a note, when none of its sequences is on this disk."""
    train, absent = select_scans(data, label_map, settings.train)
    if absent:
        click.echo(f"note: training without sequences {', '.join(absent)}, which are not on this disk", err=True)
    try:
        validation = select_scans(data, label_map, settings.validate_on).scans if settings.validate_on else []
    except DataError as error:
        click.echo(f"note: no validation, so no best student will be chosen: {error.message}", err=True)
        validation = []
    refuse_unlabelled(data, validation)
    return Scans(train, validation)


def open_targets(
    settings: ExperimentSettings,
    label_map: LabelMap,
    scans: list[ScanId],
    device: torch.device,
    cache: str | Path | None,
    teacher: Path | None,
    copies: CopySettings = CopySettings(),
) -> TargetSource:
    """The source of targets that the experiment asks for, checked against it.

    Raises:
        StoreError: the store does not fit, or lacks targets of a training scan.
        SettingsError: what the source needs was not given.
    """
    if settings.targets == "none":
        return TargetSource()
    grid = settings.grid.grid()
    check_distillable(grid.shape)
    layers = settings.distillation.teacher_layers
    if settings.targets == "online":
        if teacher is None:
            raise SettingsError("targets: online needs the teacher's checkpoint (TEACHER=, --teacher)")
        # The one place where stage two reaches into stage one: the live teacher is the reference for the cache.
        from stage1_dump_teacher.online import online_teacher

        online = online_teacher(teacher, device, layers)
        return TargetSource(online=online.targets, channels=online.channels)
    if cache is None:
        raise SettingsError("targets: cache needs the target store (CACHE=, --cache)")
    store = copied_locally(TargetStore.open(cache), copies)
    store.check_fits(grid, label_map, layers)
    check_complete(store, scans)
    return TargetSource(store=store, channels=store.identity.layers)


def check_complete(store: TargetStore, scans: list[ScanId]) -> None:
    """Refuse to start when a training scan has no targets.

    Raises:
        StoreError: says how many, and the first.
    """
    finished = store.finished()
    views = range(store.identity.views.count)
    missing = [scan for scan in scans if any((scan, view) not in finished for view in views)]
    if missing:
        raise StoreError(
            f"{store.location}: {len(missing)} of {len(scans)} training scans have no complete targets, the first is "
            f"{missing[0]}. Run make dump-teacher again: it dumps exactly what is missing."
        )


def student_data(settings: ExperimentSettings, data: Path, label_map: LabelMap, source: TargetSource) -> StudentData:
    """The training scans' loader."""
    return StudentData(
        root=data,
        label_map=label_map,
        grid=settings.grid.grid(),
        store=source.store,
        layers=tuple(settings.distillation.teacher_layers),
        augmentation=settings.augmentation,
        seed=settings.seed,
    )


def new_student(settings: ExperimentSettings, label_map: LabelMap) -> PolarNet:
    """A student as the settings describe it, with fresh weights."""
    return PolarNet(
        height_bins=settings.grid.shape[2],
        classes=len(label_map.classes),
        point_channels=settings.student.point_channels,
        compressed_channels=settings.student.compressed_channels,
        max_points_per_pillar=settings.student.max_points_per_pillar,
        dropblock=settings.student.dropblock,
    )


def new_state(
    settings: ExperimentSettings, label_map: LabelMap, source: TargetSource, device: torch.device
) -> TrainingState:
    """Student, adapters and optimiser before the first step."""
    student = new_student(settings, label_map).to(device)
    terms = settings.distillation
    distillation = Distillation(
        source.channels,
        terms.weights,
        torch.from_numpy(label_map.class_weights()),
        terms.support,
        terms.logit_scale,
        terms.logit_threshold,
    ).to(device)
    parameters = [*student.parameters(), *distillation.parameters()]
    optimiser = torch.optim.Adam(
        parameters, lr=settings.optimiser.learning_rate, weight_decay=settings.optimiser.weight_decay
    )
    return TrainingState(student, distillation, optimiser)


def start_or_resume(state: TrainingState, settings: ExperimentSettings, folder: Path, resume: bool) -> None:
    """Restore the run in `folder`, or make sure that there is none to overwrite.

    Raises:
        TrainingError: there is a run and nobody said to resume it.
    """
    exists = (folder / STATE_FILE).exists()
    if exists and not resume:
        raise TrainingError(
            f"{folder}: holds a run already. Continue it with --resume (make: RESUME=1), or choose another RUN folder."
        )
    if exists:
        state.restore(folder, settings)
        click.echo(f"resuming {folder} after step {state.step} (epoch {state.epoch + 1})")
    elif resume:
        click.echo(f"nothing to resume in {folder}; starting from the beginning")


def reached(state: TrainingState, settings: ExperimentSettings) -> bool:
    """Whether the step limit is reached."""
    return settings.steps is not None and state.step >= settings.steps
