"""Stage two: train a PolarNet student with the teacher's targets."""

import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from common.checkpoint import save_checkpoint
from common.errors import TrainingError
from common.label_map import load_label_map
from common.scan_batch import ScanBatch
from common.segmentation_loss import segmentation_terms
from common.semantic_kitti import ScanId
from common.signals import StopRequest
from common.target_store.local_copy import CopySettings
from common.teacher_targets import TeacherTargets, batch_targets
from stage2_train_student.distillation import Distillation
from stage2_train_student.evaluate import evaluate, report, student_logits
from stage2_train_student.experiment import (
    OnlineTargets,
    TargetSource,
    choose_scans,
    new_state,
    open_targets,
    start_or_resume,
    student_data,
)
from stage2_train_student.polarnet import PolarNet
from stage2_train_student.recorder import Recorder
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.student_data import StudentBatch, StudentData
from stage2_train_student.training_state import BEST_STUDENT, TrainingState, published_student


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
    label_map = load_label_map(settings.dataset)
    scans = choose_scans(settings, data, label_map)
    source = open_targets(settings, label_map, scans.train, device, cache, teacher, copies)
    dataset = student_data(settings, data, label_map, source)
    # Not earlier: building an online teacher draws numbers, and the student must start the same with and without one.
    torch.manual_seed(settings.seed)
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
    if numbers["miou"] is None:
        tqdm.write(f"epoch {state.epoch}: no mIoU, no point of the validation scans has a label")
        return
    recorder.record("validation", state.step, {"miou": numbers["miou"]}, epoch=state.epoch, iou=numbers["iou"])
    tqdm.write(f"epoch {state.epoch}: mIoU {100 * numbers['miou']:.2f}")
    if numbers["miou"] > state.best_miou:
        state.best_miou = numbers["miou"]
        save_checkpoint(folder / BEST_STUDENT, published_student(state.student))


def reached(state: TrainingState, settings: ExperimentSettings) -> bool:
    """Whether the step limit is reached."""
    return settings.steps is not None and state.step >= settings.steps
