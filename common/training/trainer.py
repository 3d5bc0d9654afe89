"""The loop of every training, of teachers and students: epochs of steps, validations, saves, and stops at any time."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import torch
from tqdm import tqdm

from common.base.config import Settings
from common.base.errors import TrainingError
from common.base.memory import peak_memory
from common.base.signals import StopRequest
from common.scans.dataset import epoch_order
from common.scans.scan_id import ScanId
from common.training.metrics import ConfusionMatrix
from common.training.processes import ALONE, Processes
from common.training.recorder import Recorder
from common.training.resuming import scans_of_sequences
from common.training.run_lock import locked
from common.training.state import STATE_FILE, TrainingState
from common.training.task import LoopSettings, StepTerms, Task

Batch = TypeVar("Batch")


class LaunchedStep(NamedTuple):
    """A step whose terms are still to be read: its number, the reading, and what it cost."""

    number: int
    read: StepTerms
    seconds: dict[str, float]


class Trainer:
    """Trains a task into a folder.

    Args:
        task: what is trained.
        folder: of the run.
        device: that it is trained on.
        processes: that train together, each with a trainer of its own; the first one writes and speaks.
    """

    def __init__(self, task: Task[Any], folder: Path, device: torch.device, processes: Processes = ALONE) -> None:
        self.task, self.folder, self.device, self.processes = task, folder, device, processes
        self.state: TrainingState[Any] = task.state
        self.settings: LoopSettings = task.settings

    def run(self, resume: bool) -> None:
        """Train to the end, or until asked to stop.

        Raises:
            TrainingError: another process trains in the folder, it holds a run and `resume` is off, or a loss is not
                finite.
            CheckpointError: the run in the folder is another one.
            DataError: a scan cannot be used.
        """
        state, processes = self.state, self.processes
        state.training_scans = scans_of_sequences(self.task.train)
        with locked(self.folder, processes):
            self.start_or_resume(resume)
            self.task.begin()
            with self.recorder() as recorder, StopRequest() as stop:
                clock = time.perf_counter()
                while not (processes.any(stop) or finished(state, self.settings)):
                    if not state.validation_due:
                        self.train_epoch(recorder, stop)
                        self.save()
                    if state.validation_due:
                        self.validate(recorder)
                        state.validation_due = False
                        self.save()
                    clock = self.record_cost(recorder, clock)
            self.task.end(finished(state, self.settings))

    def train_epoch(self, recorder: Recorder | None, stop: StopRequest) -> None:
        """Train from where the state stands to the end of the epoch, the step limit, or a request to stop.

        States are saved between steps of the optimiser only, so never inside an accumulation group.
        """
        state, epoch, processes = self.state, self.state.epoch, self.processes
        groups = self.groups(epoch)
        left = groups[state.step_in_epoch :]
        batches = self.task.load(list(chain.from_iterable(left)), epoch)
        title, first = f"epoch {epoch + 1}", state.step_in_epoch
        with tqdm(total=len(groups), initial=first, unit="step", desc=title, disable=not processes.first) as bar:
            clock = time.perf_counter()
            launched: deque[LaunchedStep] = deque()

            def record(behind: int = 0) -> None:
                while len(launched) > behind:
                    step = launched.popleft()
                    terms = step.read()
                    if recorder:
                        recorder.record("train", step.number, terms | step.seconds, epoch=epoch)
                    bar.set_postfix(loss=f"{terms['loss']:.3f}")
                    bar.update()

            for group in left:
                waits: list[float] = []
                scans, steps = sum(map(len, group)), len(groups) * self.settings.epochs
                read = self.task.step(timed(islice(batches, len(group)), waits), scans, steps)
                state.step_in_epoch += 1
                seconds = {"seconds": time.perf_counter() - clock, "waited": sum(waits)}
                launched.append(LaunchedStep(state.step, read, seconds))
                # A GPU has its next step before the terms of the last one are read.
                record(behind=self.device.type == "cuda")
                if processes.any(stop) or reached(state, self.settings):
                    break
                if self.settings.save_every and state.step % self.settings.save_every == 0:
                    record()
                    self.save()
                clock = time.perf_counter()
            record()
        if state.step_in_epoch >= len(groups):
            state.epoch, state.step_in_epoch = epoch + 1, 0
            state.validation_due = state.epoch % self.settings.validate_every == 0

    def groups(self, epoch: int) -> list[list[list[ScanId]]]:
        """The batches of an epoch in groups, one group a step; the last may be smaller."""
        batches = epoch_order(self.task.train, self.settings.batch_size, self.settings.seed, epoch)
        size = self.task.accumulate
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    def validate(self, recorder: Recorder | None) -> None:
        """mIoU over all points of the validation scans; keeps the network if it is the best so far.

        Each process counts the points of its share of the scans.
        """
        task, state, processes = self.task, self.state, self.processes
        if not task.validation:
            return
        progress = "validate" if processes.first else None
        own = task.predictor().confusion(task.dataset, processes.shard.of(task.validation), progress)
        matrix = ConfusionMatrix(processes.sum(torch.from_numpy(own.counts)).numpy())
        miou = matrix.mean_iou()
        if isnan(miou):
            if recorder:
                tqdm.write(f"epoch {state.epoch}: no mIoU, no point of the validation scans has a label")
            return
        if recorder:
            iou = matrix.iou_of(task.dataset.label_map.names)
            recorder.record("validation", state.step, {"miou": miou}, epoch=state.epoch, iou=iou)
            tqdm.write(f"epoch {state.epoch}: mIoU {100 * miou:.2f}")
        state.validations_since_best += 1
        if miou > state.best_miou:
            state.best_miou, state.validations_since_best = miou, 0
            if processes.first:
                task.write_network(self.folder / task.best)

    def save(self) -> None:
        """Write the state, and the network alone."""
        self.state.save(self.folder, self.task.settings, self.processes)
        if self.processes.first:
            self.task.write_network(self.folder / self.task.last)

    def start_or_resume(self, resume: bool) -> None:
        """Restore the run in the folder, or make sure that there is none to overwrite.

        Raises:
            TrainingError: there is a run and nobody said to resume it, or files of one whose state is gone.
        """
        folder, state, first = self.folder, self.state, self.processes.first
        if (folder / STATE_FILE).exists():
            if not resume:
                raise TrainingError(
                    f"{folder}: holds a run already. Continue it with --resume, or choose another folder with --run."
                )
            note = state.restore(folder, self.task.settings, self.task.may_change, self.processes)
            if first:
                click.echo(f"resuming {folder} after step {state.step} (epoch {state.epoch + 1})")
                if note:
                    click.echo(f"note: {note}", err=True)
            return
        left = [name for name in (self.task.best, self.task.last, *self.task.left_over) if (folder / name).exists()]
        if left:
            raise TrainingError(
                f"{folder}: holds {', '.join(left)} of an earlier run, but no training state ({STATE_FILE}) to go on "
                "from. Move them away, or choose another folder with --run."
            )
        if resume and first:
            click.echo(f"nothing to resume in {folder}; starting from the beginning")

    def recorder(self) -> Any:
        """Context of the run's recorder; of None in all processes but the first."""
        settings: Settings = self.task.settings
        # What a validation that is still due may have recorded is dropped.
        recorded = self.state.epoch - self.state.validation_due
        return Recorder(self.folder, settings, self.state.step, recorded) if self.processes.first else nullcontext()

    def record_cost(self, recorder: Recorder | None, since: float) -> float:
        """Record as `run` the seconds since a clock's reading, validation and saving included, and the peak memory.

        Returns the clock's reading now, for the next record: all records of a run add up to its time.
        """
        now, state = time.perf_counter(), self.state
        if recorder is not None:
            values = {"seconds": now - since, "peak_memory_bytes": float(peak_memory(self.device))}
            recorder.record("run", state.step, values, epoch=state.epoch, targets_hash=state.targets_hash)
        return now


def finished(state: TrainingState[Any], settings: LoopSettings) -> bool:
    """Whether a run has nothing left to do."""
    if state.validation_due:
        return False
    no_better = settings.early_stopping is not None and state.validations_since_best >= settings.early_stopping
    return state.epoch >= settings.epochs or reached(state, settings) or no_better


def reached(state: TrainingState[Any], settings: LoopSettings) -> bool:
    """Whether the step limit is reached."""
    return settings.steps is not None and state.step >= settings.steps


def timed(batches: Iterable[Batch], waits: list[float]) -> Iterator[Batch]:
    """The same batches; the seconds that each was waited for are appended to `waits`."""
    clock = time.perf_counter()
    for loaded in batches:
        waits.append(time.perf_counter() - clock)
        yield loaded
        clock = time.perf_counter()
