"""One step of training: losses of a batch, their gradients, and what the optimiser makes of them."""

import math
from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm

from common.base.errors import TrainingError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets, batch_targets
from common.training.processes import ALONE, Processes
from common.training.schedule import learning_rate_factor
from common.training.segmentation_loss import segmentation_terms
from common.training.small_batches import naming_small_batches
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.averaging import decay_at, update_average
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import OnlineTargets
from stage2_train_student.training.parallel import gradients_of, mean_statistics
from stage2_train_student.training.precision import autocast, in_float32
from stage2_train_student.training.state import TrainingState


class NonFiniteError(TrainingError):
    """A loss or a gradient is NaN or infinite; the weights are still those of the step before.

    Attributes:
        loaded: the batch.
        terms: its unweighted terms and the weighted total `loss`.
    """

    def __init__(self, message: str, loaded: StudentBatch, terms: dict[str, float]) -> None:
        super().__init__(message)
        self.loaded, self.terms = loaded, terms


def train_step(
    state: TrainingState,
    batches: Iterable[StudentBatch],
    settings: ExperimentSettings,
    steps: int,
    online: OnlineTargets | None,
    class_weights: torch.Tensor,
    device: torch.device,
    scans: int | None = None,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """One step of the optimiser from the batches of one accumulation group; counts it in `state.step`.

    Where several processes train together, each has a share of every batch, and all end with the same weights.

    Args:
        state: changed in place.
        batches: of the group; read one ahead, as they are loaded. Those without a label or a target are passed over,
            and without any other the step is counted but changes nothing.
        settings: the experiment.
        steps: of the whole run, for the schedule.
        online: the live teacher, for `targets: online`.
        class_weights: float [classes].
        device: to train on.
        scans: of the whole group; a batch weighs as much as its share of them. None for a group of one batch.
        processes: that train together.

    Returns:
        every loss term, unweighted, the weighted total `loss`, `gradient_norm` before clipping and `learning_rate`.

    Raises:
        NonFiniteError: a loss, or without a loss scaler a gradient, is not finite; the weights stay as they were.
    """
    state.student.train()
    state.distillation.train()
    state.optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for loaded, is_last in with_last(teaching(batches, online, processes)):
        share = loaded.shared / scans if scans else 1.0
        with gradients_of(state.parallel, last=is_last):
            terms = accumulate_gradients(
                state, loaded, settings.precision, share, online, class_weights, device, processes
            )
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + share * value
        last = (loaded, terms)
    rate = settings.optimiser.learning_rate * learning_rate_factor(state.step, steps, settings.optimiser.schedule)
    if not sums:
        state.step += 1
        return {**dict.fromkeys(("cross_entropy", "lovasz", "loss", "gradient_norm"), 0.0), "learning_rate": rate}
    state.scaler.unscale_(state.optimiser)
    norm = clip_gradients(state, settings.optimiser.clip_norm)
    if not (torch.isfinite(norm) or state.scaler.is_enabled()):
        raise NonFiniteError(non_finite_message(state, f"the gradient's norm is {norm.item()}", *last), *last)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.scaler.step(state.optimiser)
    state.scaler.update()
    if state.parallel is not None and not settings.sync_batch_norm:
        mean_statistics(state.parallel, processes)
    if state.average is not None and settings.averaging is not None:
        update_average(state.average, state.student, decay_at(state.step, settings.averaging))
    state.step += 1
    return {**sums, "gradient_norm": float(norm), "learning_rate": rate}


def teaching(
    batches: Iterable[StudentBatch], online: OnlineTargets | None, processes: Processes
) -> Iterator[StudentBatch]:
    """The batches with a label or a target; others would only move batch statistics and the optimiser's momentum."""
    for loaded in batches:
        if loaded.targets or online or processes.any(loaded.batch.voxel_labels.any()):
            yield loaded
        elif processes.first:
            tqdm.write(f"note: nothing to learn from scans {', '.join(map(str, loaded.scans))}: no labels, no targets")


def with_last(batches: Iterable[StudentBatch]) -> Iterator[tuple[StudentBatch, bool]]:
    """Each batch with whether it is the last; the next one is awaited before it."""
    iterator = iter(batches)
    loaded = next(iterator, None)
    while loaded is not None:
        following = next(iterator, None)
        yield loaded, following is None
        loaded = following


def accumulate_gradients(
    state: TrainingState,
    loaded: StudentBatch,
    precision: str,
    share: float,
    online: OnlineTargets | None,
    class_weights: torch.Tensor,
    device: torch.device,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Add the gradients of `share` times a batch's loss; the batch's terms are returned unweighted.

    Raises:
        NonFiniteError: the loss is not finite.
        TrainingError: the batch is too small for a batch norm.
    """
    batch = loaded.batch.to(device)
    targets = targets_of(loaded, batch, online, device)
    if not loaded.scans:
        batch, targets = batch.without_scans(), targets.without_scans() if targets else None
    arguments = (batch, targets, class_weights, precision, processes)
    with naming_small_batches(loaded.scans):
        if state.parallel is None:
            loss, parts = losses(state.student, state.distillation, *arguments)
        else:
            loss, parts = state.parallel(losses, *arguments)
    terms = {name: float(value.detach()) for name, value in {**parts, "loss": loss}.items()}
    if not torch.isfinite(loss):
        raise NonFiniteError(non_finite_message(state, f"the loss is {loss.item()}", loaded, terms), loaded, terms)
    # DistributedDataParallel takes the mean over processes of gradients that add up to those of the loss.
    state.scaler.scale(processes.count * share * loss).backward()
    return terms


def non_finite_message(state: TrainingState, what: str, loaded: StudentBatch, terms: dict[str, float]) -> str:
    """The message of a `NonFiniteError`."""
    return (
        f"step {state.step + 1}: {what} for scans {', '.join(map(str, loaded.scans)) or 'of other processes'} "
        f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}). Lower "
        "optimiser.learning_rate, or look at these scans; the last saved state is intact."
    )


def clip_gradients(state: TrainingState, largest: float | None) -> torch.Tensor:
    """Scale all gradients together down to a 2-norm of at most `largest`; None for any.

    Returns:
        their norm before, a scalar.
    """
    parameters = [*state.student.parameters(), *state.distillation.parameters()]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)


def targets_of(
    loaded: StudentBatch, batch: ScanBatch, online: OnlineTargets | None, device: torch.device
) -> TeacherTargets | None:
    """The teacher's targets on the device: decoded there from the cache, or from the live teacher, or none."""
    if loaded.targets:
        return batch_targets([targets.to(device).decode() for targets in loaded.targets])
    return online(batch) if online else None


def losses(
    student: Student,
    distillation: Distillation,
    batch: ScanBatch,
    targets: TeacherTargets | None,
    class_weights: torch.Tensor,
    precision: str = "float32",
    processes: Processes = ALONE,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Total loss and every unweighted term: L_seg + weights * (logit, vpd, lwd), Jiang et al. 2023.

    Student and adapters run in `precision`, the losses in float32. Where several processes hold a part of the batch
    each, the terms are those of the whole.
    """
    device = batch.point_features.device
    with autocast(precision, device):
        outputs = in_float32(student(batch))
    terms = segmentation_terms(outputs.voxel_logits, batch.voxel_labels, class_weights, processes)
    total = terms["cross_entropy"] + terms["lovasz"]
    if targets is not None:
        with autocast(precision, device):
            distilled = distillation(outputs, targets, batch, processes)
        total = total + distillation.total(distilled)
        terms = terms | distilled
    return total, terms
