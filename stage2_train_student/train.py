"""Stage two: train a PolarNet student with the teacher's targets."""

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from common.base.errors import TrainingError
from common.base.memory import peak_memory
from common.base.signals import StopRequest
from common.scans.dataset import epoch_order, open_dataset
from common.scans.scan_id import ScanId
from common.targets.store.local_copy import CopySettings
from common.targets.teacher import Teacher
from common.training.checkpoint import save_checkpoint
from common.training.metrics import ConfusionMatrix
from common.training.predictor import Predictor
from common.training.processes import ALONE, Processes
from common.training.recorder import Recorder
from common.training.resuming import scans_of_sequences
from common.training.run_lock import locked
from stage2_train_student.evaluation.evaluate import report, student_logits
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch, StudentData
from stage2_train_student.training.experiment import (
    TargetSource,
    check_divisible,
    new_state,
    open_targets,
    start_or_resume,
    student_data,
    with_targets,
)
from stage2_train_student.training.finished_run import remove_finished, write_finished
from stage2_train_student.training.parallel import draw_apart, parallel
from stage2_train_student.training.scans import choose_scans
from stage2_train_student.training.seen_data import write_seen
from stage2_train_student.training.state import BEST_STUDENT, TrainingState, published_student
from stage2_train_student.training.step import NonFiniteError, train_step

NON_FINITE_BATCH = "non_finite_batch"


def run(
    settings: ExperimentSettings,
    data: Path,
    folder: Path,
    device: torch.device,
    cache: str | Path | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
    copies: CopySettings = CopySettings(),
    processes: Processes = ALONE,
) -> TrainingState:
    """Train a student into `folder`.

    Args:
        settings: the experiment.
        data: folder that holds `sequences/`.
        folder: of the run.
        device: to train on.
        cache: target store, for `targets: cache`.
        teacher: on the device, for `targets: online`.
        resume: continue the run in `folder`.
        copies: where what is read from a target store at a URL is kept.
        processes: that train together, each calling this with the same arguments; the first one writes and speaks.

    Raises:
        TrainingError: another process trains in `folder`, it holds a run and `resume` is off, or a loss is not finite.
        CheckpointError: the run in `folder` is another one.
        DataError: a scan cannot be used.
    """
    check_divisible(settings, processes)
    dataset = open_dataset(data, settings.dataset)
    scans = choose_scans(settings, dataset, processes)
    source = open_targets(settings, dataset.label_map, scans.train, cache, teacher, copies)
    train, validation = with_targets(scans, source, processes)
    loader = student_data(settings, dataset, source)
    # Not earlier: building an online teacher draws numbers, and the student must start the same with and without one.
    torch.manual_seed(settings.seed)
    state = new_state(settings, dataset.label_map, source, device)
    draw_apart(settings.seed, state.step, processes)
    weights = torch.from_numpy(dataset.label_map.class_weights()).to(device)
    state.training_scans = scans_of_sequences(train)
    with locked(folder, processes):
        start_or_resume(state, settings, folder, resume, processes)
        if processes.first:
            remove_finished(folder)
            stored = source.store.identity.views if source.store else None
            write_seen(folder, settings, stored, scans.train, source.hash)
        state.parallel = parallel(state.student, state.distillation, settings.sync_batch_norm, processes)
        # What a validation that is still due may have recorded is dropped.
        recorded = state.epoch - state.validation_due
        writer = Recorder(folder, settings, state.step, recorded) if processes.first else nullcontext()
        with writer as recorder, StopRequest() as stop:
            clock = time.perf_counter()
            while not (processes.any(stop) or finished(state, settings)):
                if not state.validation_due:
                    train_epoch(
                        state, settings, loader, train, source, weights, recorder, folder, stop, device, processes
                    )
                    state.save(folder, settings, processes)
                if state.validation_due:
                    validate(state, loader, validation, recorder, folder, device, processes)
                    state.validation_due = False
                    state.save(folder, settings, processes)
                if recorder is not None:
                    clock = record_cost(recorder, state, clock, device)
        if processes.first:
            note_end(folder, settings, state)
    return state


def note_end(folder: Path, settings: ExperimentSettings, state: TrainingState) -> None:
    """Say why a run ended early, and note in its folder that it has ended as its settings ask."""
    if no_better(state, settings):
        tqdm.write(
            f"stopped: {state.validations_since_best} validations without a better mIoU (setting early_stopping)"
        )
    if finished(state, settings):
        write_finished(folder, settings, state)


def train_epoch(
    state: TrainingState,
    settings: ExperimentSettings,
    loader: StudentData,
    scans: list[ScanId],
    source: TargetSource,
    class_weights: torch.Tensor,
    recorder: Recorder | None,
    folder: Path,
    stop: StopRequest,
    device: torch.device,
    processes: Processes = ALONE,
) -> None:
    """Train from where the state stands to the end of the epoch, the step limit, or a request to stop.

    States are saved between steps of the optimiser only, so never inside an accumulation group.
    """
    accumulate, epoch = settings.optimiser.accumulate, state.epoch
    groups = accumulation_groups(scans, settings, epoch)
    first = state.step_in_epoch * accumulate
    batches = loader.batches(scans, settings.batch_size, epoch, first, settings.loading_threads, processes.shard)
    steps, title, silent = len(groups), f"epoch {epoch + 1}", not processes.first
    with tqdm(total=steps, initial=state.step_in_epoch, unit="step", desc=title, disable=silent) as bar:
        clock = time.perf_counter()
        for group in groups[state.step_in_epoch :]:
            waits: list[float] = []
            try:
                terms = train_step(
                    state,
                    timed(islice(batches, len(group)), waits),
                    settings,
                    len(groups) * settings.epochs,
                    source.online,
                    class_weights,
                    device,
                    sum(map(len, group)),
                    processes,
                )
            except NonFiniteError as error:
                path = save_batch(folder, error, state, loader, processes)
                raise TrainingError(f"{error.message} The batch is kept in {path}.") from error
            state.step_in_epoch += 1
            seconds = time.perf_counter() - clock
            if recorder:
                recorder.record("train", state.step, {**terms, "seconds": seconds, "waited": sum(waits)}, epoch=epoch)
            bar.set_postfix(loss=f"{terms['loss']:.3f}")
            bar.update()
            if processes.any(stop) or reached(state, settings):
                break
            if settings.save_every and state.step % settings.save_every == 0:
                state.save(folder, settings, processes)
            clock = time.perf_counter()
    if state.step_in_epoch >= len(groups):
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        state.validation_due = state.epoch % settings.validate_every == 0


def accumulation_groups(scans: list[ScanId], settings: ExperimentSettings, epoch: int) -> list[list[list[ScanId]]]:
    """The batches of an epoch in groups of `optimiser.accumulate`, one group a step; the last may be smaller."""
    batches = epoch_order(scans, settings.batch_size, settings.seed, epoch)
    size = settings.optimiser.accumulate
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def timed(batches: Iterable[StudentBatch], waits: list[float]) -> Iterator[StudentBatch]:
    """The same batches; the seconds that each was waited for are appended to `waits`."""
    iterator = iter(batches)
    while True:
        clock = time.perf_counter()
        loaded = next(iterator, None)
        waits.append(time.perf_counter() - clock)
        if loaded is None:
            return
        yield loaded


def save_batch(
    folder: Path, error: NonFiniteError, state: TrainingState, loader: StudentData, processes: Processes = ALONE
) -> Path:
    """Keep the batch that made a loss or gradient not finite; `common.training.checkpoint.load_checkpoint` reads it.

    Holds the scans, the view of each in words, the hash of what made the targets, the terms, and the batch's own
    tensors. Each of several processes keeps its part of the batch in a file of its own.

    Returns:
        the file.
    """
    part = "" if processes.count == 1 else f"_process_{processes.rank}"
    path = folder / f"{NON_FINITE_BATCH}_{state.step + 1}{part}.pt"
    content = {
        "step": state.step + 1,
        "epoch": state.epoch,
        "scans": [str(scan) for scan in error.loaded.scans],
        "views": [
            str(loader.anchored_view(scan, state.epoch) if loader.store else loader.drawn_view(scan, state.epoch))
            for scan in error.loaded.scans
        ],
        "targets_hash": state.targets_hash,
        "terms": error.terms,
        "batch": vars(error.loaded.batch),
    }
    save_checkpoint(path, content)
    return path


def validate(
    state: TrainingState,
    loader: StudentData,
    scans: list[ScanId],
    recorder: Recorder | None,
    folder: Path,
    device: torch.device,
    processes: Processes = ALONE,
) -> None:
    """mIoU over all points of the validation scans; keeps the student if it is the best so far.

    Each process counts the points of its share of the scans.
    """
    if not scans:
        return
    share, progress = processes.shard.of(scans), "validate" if processes.first else None
    predictor = Predictor(student_logits(state.trained), loader.grid, device)
    matrix = predictor.confusion(loader.dataset, share, progress)
    counts = processes.sum(torch.from_numpy(matrix.counts)).numpy()
    numbers = report(ConfusionMatrix(counts), loader.dataset.label_map)
    if numbers["miou"] is None:
        if recorder:
            tqdm.write(f"epoch {state.epoch}: no mIoU, no point of the validation scans has a label")
        return
    if recorder:
        recorder.record("validation", state.step, {"miou": numbers["miou"]}, epoch=state.epoch, iou=numbers["iou"])
        tqdm.write(f"epoch {state.epoch}: mIoU {100 * numbers['miou']:.2f}")
    state.validations_since_best += 1
    if numbers["miou"] > state.best_miou:
        state.best_miou, state.validations_since_best = numbers["miou"], 0
        if processes.first:
            save_checkpoint(folder / BEST_STUDENT, published_student(state.trained))


def finished(state: TrainingState, settings: ExperimentSettings) -> bool:
    """Whether the run has nothing left to do."""
    if state.validation_due:
        return False
    return state.epoch >= settings.epochs or reached(state, settings) or no_better(state, settings)


def record_cost(recorder: Recorder, state: TrainingState, since: float, device: torch.device) -> float:
    """Record as `run` the seconds since a clock's reading, validation and saving included, and the peak memory so far.

    Returns:
        the clock's reading now, for the next record. All records of a run add up to its time.
    """
    now = time.perf_counter()
    values = {"seconds": now - since, "peak_memory_bytes": float(peak_memory(device))}
    recorder.record("run", state.step, values, epoch=state.epoch, targets_hash=state.targets_hash)
    return now


def reached(state: TrainingState, settings: ExperimentSettings) -> bool:
    """Whether the step limit is reached."""
    return settings.steps is not None and state.step >= settings.steps


def no_better(state: TrainingState, settings: ExperimentSettings) -> bool:
    """Whether `early_stopping` ends the run."""
    return settings.early_stopping is not None and state.validations_since_best >= settings.early_stopping
