"""One step of training: losses of a batch, their gradients, and what the optimiser makes of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.base.errors import TrainingError
from common.scans.scan_batch import ScanBatch
from common.targets.teacher_targets import TeacherTargets
from common.training.guarded_step import read_rows, step_if_finite
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
from stage2_train_student.training.state import StudentState

NOTHING_LEARNED = ("cross_entropy", "lovasz", "loss", "gradient_norm")
"""Terms of a step whose scans have neither labels nor targets: all 0."""


class NonFiniteError(TrainingError):
    """A loss or a gradient is NaN or infinite; the weights are still those of the step before.

    Attributes:
        loaded: the batch.
        terms: its unweighted terms and the weighted total `loss`.
    """

    def __init__(self, message: str, loaded: StudentBatch, terms: dict[str, float]) -> None:
        super().__init__(message)
        self.loaded, self.terms = loaded, terms


class BatchTerms(NamedTuple):
    """Loss terms of one batch, still on the device.

    Attributes:
        loaded: the batch.
        share: of its loss in that of the step.
        names: of the terms, the last one `loss`.
        values: float [terms].
    """

    loaded: StudentBatch
    share: float
    names: list[str]
    values: torch.Tensor


@dataclass(frozen=True)
class StudentStep:
    """Steps of the optimiser, each from the batches of one accumulation group.

    On a GPU a step only queues work: the device is waited for once, at its end, to read all terms.

    Attributes:
        state: changed in place; each step counts itself in `state.step`.
        settings: the experiment.
        class_weights: float [classes], on the device to train on.
        online: the live teacher, for `targets: online`.
        processes: that train together. Each has a share of every batch, and all end with the same weights.
    """

    state: StudentState
    settings: ExperimentSettings
    class_weights: torch.Tensor
    online: OnlineTargets | None = None
    processes: Processes = ALONE

    def __call__(self, batches: Iterable[StudentBatch], scans: int | None = None, steps: int = 1) -> dict[str, float]:
        """One step.

        Args:
            batches: of the group; read one ahead, as they are loaded. Those without a label or a target are passed
                over, and without any other the step is counted but changes nothing.
            scans: of the whole group; a batch weighs as much as its share of them. None for a group of one batch.
            steps: of the whole run, for the schedule.

        Returns:
            every loss term, unweighted, the weighted total `loss`, `gradient_norm` before clipping and
            `learning_rate`.

        Raises:
            NonFiniteError: a loss, or without a loss scaler a gradient, is not finite; the weights stay as they were.
            TrainingError: a batch is too small for a batch norm.
        """
        state, optimiser = self.state, self.settings.optimiser
        state.networks.student.train()
        state.networks.distillation.train()
        state.optimiser.zero_grad(set_to_none=True)
        parts: list[BatchTerms] = []
        for loaded, is_last in with_last(teaching(batches, self.online, self.processes)):
            share = loaded.shared / scans if scans else 1.0
            with gradients_of(state.parallel, last=is_last):
                parts.append(self.accumulate_gradients(loaded, share))
        rate = optimiser.learning_rate * learning_rate_factor(state.step, steps, optimiser.schedule)
        terms = self.update(parts, rate) if parts else dict.fromkeys(NOTHING_LEARNED, 0.0)
        state.step += 1
        return {**terms, "learning_rate": rate}

    def accumulate_gradients(self, loaded: StudentBatch, share: float) -> BatchTerms:
        """Add the gradients of `share` times a batch's loss; the terms that are returned are unweighted.

        Raises:
            TrainingError: the batch is too small for a batch norm.
        """
        state, device = self.state, self.class_weights.device
        batch = loaded.batch.to(device)
        targets = targets_of(loaded, batch, self.online, device)
        if not loaded.scans:
            batch, targets = batch.without_scans(), targets.without_scans() if targets else None
        arguments = (batch, targets, self.class_weights, self.settings.precision, self.processes)
        with naming_small_batches(loaded.scans):
            if state.parallel is None:
                loss, terms = losses(state.networks.student, state.networks.distillation, *arguments)
            else:
                loss, terms = state.parallel(losses, *arguments)
        # DistributedDataParallel takes the mean over processes of gradients that add up to those of the loss.
        state.scaler.scale(self.processes.count * share * loss).backward()
        values = torch.stack([value.detach().to(loss.dtype) for value in (*terms.values(), loss)])
        return BatchTerms(loaded, share, [*terms, "loss"], values)

    def update(self, parts: list[BatchTerms], rate: float) -> dict[str, float]:
        """Let the optimiser take its step, unless something is not finite, and read the terms of all batches.

        Raises:
            NonFiniteError: see `__call__`.
        """
        state = self.state
        state.scaler.unscale_(state.optimiser)
        norm = clip_gradients(state, self.settings.optimiser.clip_norm)
        values = [part.values for part in parts]
        step_if_finite(state, rate, torch.cat([*values, norm.to(values[0].dtype)[None]]))
        if state.parallel is not None and not self.settings.sync_batch_norm:
            mean_statistics(state.parallel, self.processes)
        student, average = state.networks.student, state.networks.average
        if average is not None and self.settings.averaging is not None:
            update_average(average, student, decay_at(state.step, self.settings.averaging))
        *rows, (norm_read,) = read_rows([*values, norm.to(values[0].dtype)[None]])
        self.refuse_non_finite(parts, rows, norm_read)
        shares = [part.share for part in parts]
        terms = {
            name: sum(share * row[place] for share, row in zip(shares, rows, strict=True))
            for place, name in enumerate(parts[0].names)
        }
        return {**terms, "gradient_norm": norm_read}

    def refuse_non_finite(self, parts: list[BatchTerms], rows: list[list[float]], norm: float) -> None:
        """Stop where a loss, or without a loss scaler the gradients' norm, is not finite.

        Raises:
            NonFiniteError: names the first such batch; for a norm the last one.
        """
        problems = [f"the loss is {row[-1]}" if not math.isfinite(row[-1]) else "" for row in rows]
        if not any(problems) and not (math.isfinite(norm) or self.state.scaler.is_enabled()):
            problems[-1] = f"the gradient's norm is {norm}"
        for part, row, problem in zip(parts, rows, problems, strict=True):
            if problem:
                terms = dict(zip(part.names, row, strict=True))
                raise NonFiniteError(non_finite_message(self.state, problem, part.loaded, terms), part.loaded, terms)


def teaching(
    batches: Iterable[StudentBatch], online: OnlineTargets | None, processes: Processes
) -> Iterator[StudentBatch]:
    """The batches with a label or a target; others would only move batch statistics and the optimiser's momentum."""
    for loaded in batches:
        if loaded.has_targets or online or processes.any(loaded.batch.labelled):
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


def non_finite_message(state: StudentState, what: str, loaded: StudentBatch, terms: dict[str, float]) -> str:
    """The message of a `NonFiniteError`."""
    return (
        f"step {state.step + 1}: {what} for scans {', '.join(map(str, loaded.scans)) or 'of other processes'} "
        f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}). Lower "
        "optimiser.learning_rate, or look at these scans; the last saved state is intact."
    )


def clip_gradients(state: StudentState, largest: float | None) -> torch.Tensor:
    """Scale all gradients together down to a 2-norm of at most `largest`; None for any.

    Returns:
        their norm before, a scalar.
    """
    parameters = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)


def targets_of(
    loaded: StudentBatch, batch: ScanBatch, online: OnlineTargets | None, device: torch.device
) -> TeacherTargets | None:
    """The teacher's targets on the device: decoded there from the cache, or from the live teacher, or none."""
    if loaded.has_targets:
        return loaded.decoded_targets(device)
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
