"""Stage two: train a student with the teacher's targets."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.base.errors import TrainingError
from common.scans.dataset import open_dataset
from common.scans.scan_id import ScanId
from common.targets.store.local_copy import CopySettings
from common.targets.teacher import Teacher
from common.training.checkpoint import save_checkpoint
from common.training.predictor import Predictor
from common.training.processes import ALONE, Processes, draw_apart
from common.training.task import StepTerms, Task
from common.training.trainer import Trainer
from stage2_train_student.evaluation.evaluate import student_logits
from stage2_train_student.evaluation.evaluation_file import EVALUATION_FILE
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch, StudentData
from stage2_train_student.training.experiment import (
    TargetSource,
    check_divisible,
    new_state,
    open_targets,
    student_data,
    with_targets,
)
from stage2_train_student.training.parallel import parallel
from stage2_train_student.training.precision import choose_kernels
from stage2_train_student.training.runs import FINISHED_FILE, write_finished
from stage2_train_student.training.scans import Scans, choose_scans
from stage2_train_student.training.seen_data import write_seen
from stage2_train_student.training.state import BEST_STUDENT, LAST_STUDENT, StudentState, capture, may_change, replays
from stage2_train_student.training.step import NonFiniteError, StudentStep

NON_FINITE_BATCH = "non_finite_batch"


class Inputs(NamedTuple):
    """What a student learns from.

    A folder of scans, and for `targets: cache` a target store, with the folder that keeps what is read from one at a
    URL; for `targets: online` a teacher on the device.
    """

    data: Path
    cache: str | Path | None = None
    teacher: Teacher | None = None
    copies: CopySettings = CopySettings()


def run(
    settings: ExperimentSettings, inputs: Inputs, folder: Path, resume: bool = False, processes: Processes = ALONE
) -> StudentState:
    """Train a student into `folder`; with `resume`, go on with the run that it holds.

    Several processes that train together call this with the same arguments; the first one writes and speaks.

    Raises:
        TrainingError: another process trains in `folder`, it holds a run and `resume` is off, or a loss is not finite.
        CheckpointError: the run in `folder` is another one.
        DataError: a scan cannot be used.
    """
    check_divisible(settings, processes)
    choose_kernels(settings.precision, processes.device)
    dataset = open_dataset(inputs.data, settings.dataset)
    chosen = choose_scans(settings, dataset, processes)
    source = open_targets(settings, dataset.label_map, chosen.train, inputs.cache, inputs.teacher, inputs.copies)
    scans = with_targets(chosen, source, processes)
    loader = student_data(settings, dataset, source, processes.device, scans.train)
    # Not earlier: building an online teacher draws numbers, and the student must start the same with and without one.
    torch.manual_seed(settings.seed)
    state = new_state(settings, dataset.label_map, source, processes.device)
    draw_apart(settings.seed, state.step, processes)
    task = StudentTask(state, loader, source, scans, folder, processes)
    Trainer(task, folder, processes.device, processes).run(resume)
    # Its gradients are shared no more: the processes are about to part.
    state.parallel = None
    return state


class StudentTask(Task[StudentBatch]):
    """A student as a `Trainer` sees it."""

    best, last, left_over = BEST_STUDENT, LAST_STUDENT, (EVALUATION_FILE,)
    settings: ExperimentSettings

    def __init__(
        self,
        state: StudentState,
        loader: StudentData,
        source: TargetSource,
        scans: Scans,
        folder: Path,
        processes: Processes,
    ) -> None:
        settings = loader.settings
        self.state, self.loader, self.source, self.folder, self.processes = state, loader, source, folder, processes
        self.dataset, self.train, self.validation = loader.dataset, scans.train, scans.validation
        self.settings, self.may_change, self.accumulate = settings, may_change(settings), settings.optimiser.accumulate
        weights = torch.from_numpy(self.dataset.label_map.class_weights()).to(processes.device)
        self.one_step = StudentStep(state, settings, weights, source.online, processes)

    def begin(self) -> None:
        if self.processes.first:
            # The run goes on, with other settings perhaps.
            (self.folder / FINISHED_FILE).unlink(missing_ok=True)
            self.note_seen()
        networks, settings = self.state.networks, self.settings
        if replays(settings, self.processes):
            capture(networks, settings)
        self.state.parallel = parallel(
            networks.student, networks.distillation, settings.sync_batch_norm, self.processes
        )

    def note_seen(self) -> None:
        """Keep what the student sees in the run's folder."""
        source, chosen, has_labels = self.source, self.loader.labelled, self.dataset.has_labels
        views = source.store.identity.views if source.store else None
        scans = [*self.train, *source.skipped]
        labelled = None if chosen is None else [scan for scan in self.train if scan in chosen and has_labels(scan)]
        write_seen(self.folder, self.settings, views, scans, source.hash, len(source.skipped), labelled)

    def load(self, batches: list[list[ScanId]], epoch: int) -> Iterator[StudentBatch]:
        return self.loader.batches(batches, epoch, self.settings.threads(self.processes.device), self.processes.shard)

    def step(self, batches: Iterable[StudentBatch], scans: int, steps: int) -> StepTerms:
        read = self.one_step.launch(batches, scans, steps)

        def read_or_save() -> dict[str, float]:
            try:
                return read()
            except NonFiniteError as error:
                path = self.save_batch(error)
                raise TrainingError(f"{error.message} The batch is kept in {path}.") from error

        return read_or_save

    def save_batch(self, error: NonFiniteError) -> Path:
        """Keep the batch that made a loss or gradient not finite; `training.checkpoint.load_checkpoint` reads it.

        The file, which is returned, holds the scans, the view of each and what was mixed into it in words, the hash of
        what made the targets, the terms, and the batch's own tensors. Each of several processes keeps its part of the
        batch in a file of its own.
        """
        loader, state, processes = self.loader, self.state, self.processes
        part = "" if processes.count == 1 else f"_process_{processes.rank}"
        path = self.folder / f"{NON_FINITE_BATCH}_{error.step}{part}.pt"
        view_of = loader.anchored_view if loader.store else loader.drawn_view
        content = {
            "step": error.step,
            "epoch": state.epoch,
            "scans": [str(scan) for scan in error.loaded.scans],
            "views": [str(view_of(scan, state.epoch)) for scan in error.loaded.scans],
            "mixed": [str(loader.mixing(scan, state.epoch)) for scan in error.loaded.scans],
            "targets_hash": state.targets_hash,
            "terms": error.terms,
            "batch": vars(error.loaded.batch.to("cpu")),
        }
        save_checkpoint(path, content)
        return path

    def predictor(self) -> Predictor:
        return Predictor(student_logits(self.state.networks.trained), self.loader.grid, self.processes.device)

    def write_network(self, path: Path) -> None:
        save_checkpoint(path, self.state.networks.trained.published())

    def end(self, finished: bool) -> None:
        """Say why a run ended early, and note in its folder that it has ended as its settings ask."""
        if not self.processes.first:
            return
        patience, waited = self.settings.early_stopping, self.state.validations_since_best
        if patience is not None and waited >= patience:
            tqdm.write(f"stopped: {waited} validations without a better mIoU (setting early_stopping)")
        if finished:
            write_finished(self.folder, self.settings, self.state)
