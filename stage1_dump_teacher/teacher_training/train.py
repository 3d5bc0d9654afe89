"""Train a Cylinder3D of any width on a labelled dataset, for those who have no published checkpoint that fits."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.base.errors import DataError, TrainingError
from common.base.overlap import started_ahead
from common.base.signals import StopRequest
from common.scans.dataset import Dataset, epoch_order, open_dataset, voxelise_view
from common.scans.label_map import LabelMap
from common.scans.scan_batch import ScanBatch, batch_scans
from common.scans.scan_id import ScanId
from common.scans.view import IDENTITY, draw_view
from common.training.predictor import Predictor
from common.training.recorder import Recorder
from common.training.resuming import scans_of_sequences
from common.training.run_lock import locked
from common.training.schedule import learning_rate_factor
from common.training.segmentation_loss import segmentation_terms
from common.training.small_batches import naming_small_batches
from stage1_dump_teacher.teacher_training.settings import TeacherTrainingSettings
from stage1_dump_teacher.teacher_training.state import BEST_TEACHER, STATE_FILE, TeacherState, save_teacher
from stage1_dump_teacher.teachers.cylinder3d_network import Cylinder3D, TeacherWidths


def run(
    settings: TeacherTrainingSettings, data: Path, folder: Path, device: torch.device, resume: bool = False
) -> TeacherState:
    """Train a teacher into `folder`.

    Args:
        settings: the network and its training.
        data: folder that holds `sequences/`.
        folder: of the run; gets `teacher_last.safetensors` and, with validation, `teacher_best.safetensors`.
        device: to train on.
        resume: continue the run in `folder`.

    Raises:
        DataError: a scan cannot be used, or has no labels.
        TrainingError: another process trains in `folder`, it holds a run already and `resume` is off, or the loss is
            not finite.
        CheckpointError: the run in the folder does not fit.
    """
    dataset = open_dataset(data, settings.dataset)
    train = dataset.select(settings.train).scans
    require_labels(dataset, train)
    validation = validation_scans(settings, dataset)
    torch.manual_seed(settings.seed)
    state = new_state(settings, dataset.label_map, device)
    weights = torch.from_numpy(dataset.label_map.class_weights()).to(device)
    state.training_scans = scans_of_sequences(train)
    with locked(folder):
        start_or_resume(state, settings, folder, resume)
        # What a validation that is still due may have recorded is dropped.
        recorded = state.epoch - state.validation_due
        with Recorder(folder, settings, state.step, recorded) as recorder, StopRequest() as stop:
            while not (stop or finished(state, settings)):
                if not state.validation_due:
                    train_epoch(state, settings, dataset, train, weights, recorder, folder, stop, device)
                    state.save(folder, settings)
                if state.validation_due:
                    validate(state, settings, dataset, validation, recorder, folder, device)
                    state.validation_due = False
                    state.save(folder, settings)
    return state


def train_epoch(
    state: TeacherState,
    settings: TeacherTrainingSettings,
    dataset: Dataset,
    scans: list[ScanId],
    class_weights: torch.Tensor,
    recorder: Recorder,
    folder: Path,
    stop: StopRequest,
    device: torch.device,
) -> None:
    """Train from where the state stands to the end of the epoch, the step limit, or a request to stop."""
    groups = epoch_order(scans, settings.batch_size, settings.seed, state.epoch)
    steps = len(groups) * settings.epochs
    ahead = batches(settings, dataset, groups[state.step_in_epoch :], state.epoch)
    with tqdm(total=len(groups), initial=state.step_in_epoch, unit="step", desc=f"epoch {state.epoch + 1}") as bar:
        clock = time.perf_counter()
        for names, batch in ahead:
            terms = train_step(state, settings, batch.to(device), names, steps, class_weights)
            state.step_in_epoch += 1
            seconds = time.perf_counter() - clock
            recorder.record("train", state.step, {**terms, "seconds": seconds}, epoch=state.epoch)
            bar.set_postfix(loss=f"{terms['loss']:.3f}")
            bar.update()
            if stop or reached(state, settings):
                break
            if settings.save_every and state.step % settings.save_every == 0:
                state.save(folder, settings)
            clock = time.perf_counter()
    if state.step_in_epoch >= len(groups):
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        state.validation_due = state.epoch % settings.validate_every == 0


def train_step(
    state: TeacherState,
    settings: TeacherTrainingSettings,
    batch: ScanBatch,
    names: list[ScanId],
    steps: int,
    class_weights: torch.Tensor,
) -> dict[str, float]:
    """One step of Adam on cross entropy and Lovasz, as Cylinder3D was trained (Zhu et al., CVPR 2021, section 3.5).

    Returns:
        the terms, their sum `loss`, and the learning rate.

    Raises:
        TrainingError: the loss is not finite, or the batch too small for a batch norm; the weights stay as they were.
    """
    rate = settings.learning_rate * learning_rate_factor(state.step, steps, settings.schedule)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    if not batch.voxel_labels.any():
        # A step would move batch statistics and Adam's momentum without having learned anything.
        tqdm.write(f"note: nothing to learn from scans {', '.join(map(str, names))}: no voxel has a label")
        state.step += 1
        return {"cross_entropy": 0.0, "lovasz": 0.0, "loss": 0.0, "learning_rate": rate}
    state.teacher.train()
    with naming_small_batches(names):
        logits = state.teacher(batch).logits
    terms = segmentation_terms(logits, batch.voxel_labels, class_weights)
    loss = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        raise TrainingError(
            f"step {state.step + 1}: the loss is {loss.item()} for scans {', '.join(map(str, names))}. Lower "
            "learning_rate, or look at these scans; the last saved state is intact."
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    state.optimiser.step()
    state.step += 1
    return {
        **{name: float(term.detach()) for name, term in terms.items()},
        "loss": float(loss.detach()),
        "learning_rate": rate,
    }


def batches(
    settings: TeacherTrainingSettings, dataset: Dataset, groups: list[list[ScanId]], epoch: int
) -> Iterator[tuple[list[ScanId], ScanBatch]]:
    """Batches of one epoch, loaded ahead by threads, each scan in a view of its own for every epoch."""
    grid = settings.grid.grid()

    def load(scan: ScanId):  # type: ignore[no-untyped-def]
        policy = settings.augmentation
        view = IDENTITY if policy is None else draw_view(policy, scan, 1 + epoch, settings.seed)
        return voxelise_view(dataset.read(scan), view, grid, dataset.label_map)

    def load_batch(group: list[ScanId]) -> ScanBatch:
        return batch_scans([load(scan) for scan in group], grid.shape)

    threads = settings.loading_threads
    for group, future in started_ahead(load_batch, groups, depth=2 * threads, threads=threads):
        yield group, future.result()


def validate(
    state: TeacherState,
    settings: TeacherTrainingSettings,
    dataset: Dataset,
    scans: list[ScanId],
    recorder: Recorder,
    folder: Path,
    device: torch.device,
) -> None:
    """mIoU over all points of the validation scans; keeps the teacher if it is the best so far."""
    if not scans:
        return
    state.teacher.eval()
    predictor = Predictor(lambda batch: state.teacher(batch).logits, settings.grid.grid(), device)
    miou = predictor.confusion(dataset, scans, "validate").mean_iou()
    if np.isnan(miou):
        tqdm.write(f"epoch {state.epoch}: no mIoU, no point of the validation scans has a label")
        return
    recorder.record("validation", state.step, {"miou": miou}, epoch=state.epoch)
    tqdm.write(f"epoch {state.epoch}: mIoU {100 * miou:.2f}")
    if miou > state.best_miou:
        state.best_miou = miou
        save_teacher(folder / BEST_TEACHER, state.teacher, settings)


def new_state(settings: TeacherTrainingSettings, label_map: LabelMap, device: torch.device) -> TeacherState:
    """Teacher and optimiser before the first step."""
    widths = settings.widths
    teacher = Cylinder3D(
        TeacherWidths(widths.point_channels, widths.voxel_channels, widths.base, len(label_map.classes)),
        on_cpu=device.type == "cpu",
    ).to(device)
    return TeacherState(teacher, torch.optim.Adam(teacher.parameters(), lr=settings.learning_rate))


def start_or_resume(state: TeacherState, settings: TeacherTrainingSettings, folder: Path, resume: bool) -> None:
    """Restore the run in `folder`, or make sure that there is none to overwrite.

    Raises:
        TrainingError: there is a run and nobody said to resume it.
        CheckpointError: the run does not fit.
    """
    exists = (folder / STATE_FILE).exists()
    if exists and not resume:
        raise TrainingError(
            f"{folder}: holds a run already. Continue it with --resume (make: RESUME=1), or choose another RUN folder."
        )
    if exists:
        note = state.restore(folder, settings)
        if note:
            tqdm.write(f"note: {note}")
        tqdm.write(f"resuming {folder} after step {state.step} (epoch {state.epoch + 1})")
    elif resume:
        tqdm.write(f"nothing to resume in {folder}; starting from the beginning")


def require_labels(dataset: Dataset, scans: list[ScanId]) -> None:
    """Refuse scans without labels, of which a teacher learns nothing.

    Raises:
        DataError: one has no labels.
    """
    without = dataset.unlabelled(scans)
    if without:
        raise DataError(
            f"{len(without)} of {len(scans)} scans have no labels, the first is {without[0]}. A teacher is trained on "
            "labels; choose labelled splits (setting train or validate_on)."
        )


def validation_scans(settings: TeacherTrainingSettings, dataset: Dataset) -> list[ScanId]:
    """Scans to validate on; none, with a note, when none of the sequences is on this disk."""
    if not settings.validate_on:
        return []
    try:
        scans = dataset.select(settings.validate_on).scans
    except DataError as error:
        tqdm.write(f"note: no validation, so no best teacher will be chosen: {error.message}")
        return []
    require_labels(dataset, scans)
    return scans


def finished(state: TeacherState, settings: TeacherTrainingSettings) -> bool:
    """Whether the run has nothing left to do."""
    return not state.validation_due and (state.epoch >= settings.epochs or reached(state, settings))


def reached(state: TeacherState, settings: TeacherTrainingSettings) -> bool:
    """Whether the step limit is reached."""
    return settings.steps is not None and state.step >= settings.steps
