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
from common.training.guarded_step import DeviceRows, step_if_finite
from common.training.processes import ALONE, Processes
from common.training.schedule import learning_rate_factor
from common.training.segmentation_loss import segmentation_terms
from common.training.small_batches import naming_small_batches
from common.training.task import StepTerms
from stage2_train_student.distillation.terms import Distillation
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.students.student import Student
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import OnlineTargets
from stage2_train_student.training.parallel import gradients_of, mean_statistics
from stage2_train_student.training.precision import autocast, in_float32
from stage2_train_student.training.state import StudentState, decay_at, update_average

NOTHING_LEARNED = ("cross_entropy", "lovasz", "loss", "gradient_norm")
"""Terms of a step whose scans have neither labels nor targets: all 0."""


class NonFiniteError(TrainingError):
    """A loss or a gradient of a batch is NaN or infinite; the weights are still those of the step before.

    Holds the step's number, from 1, and the batch with its unweighted terms and the weighted total `loss`.
    """

    def __init__(self, problem: str, step: int, loaded: StudentBatch, terms: dict[str, float]) -> None:
        super().__init__(
            f"step {step}: {problem} for scans {', '.join(map(str, loaded.scans)) or 'of other processes'} "
            f"({', '.join(f'{name} {value:.4g}' for name, value in terms.items())}). Lower "
            "optimiser.learning_rate, or look at these scans; the last saved state is intact."
        )
        self.step, self.loaded, self.terms = step, loaded, terms


class BatchTerms(NamedTuple):
    """Loss terms of a batch, float [terms], still on the device, the last one `loss`; its share in the step's loss."""

    loaded: StudentBatch
    share: float
    names: list[str]
    values: torch.Tensor


@dataclass(frozen=True)
class StudentStep:
    """Steps of the optimiser, each from the batches of one accumulation group.

    A step only queues work on a GPU, which is waited for where its terms are read, and then for this step alone.

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
        """One step and its terms, see `launch`."""
        return self.launch(batches, scans, steps)()

    def launch(self, batches: Iterable[StudentBatch], scans: int | None = None, steps: int = 1) -> StepTerms:
        """One step, which its device may still be taking when this returns.

        Args:
            batches: of the group; read one ahead, as they are loaded. Those without a label or a target are passed
                over, and without any other the step is counted but changes nothing.
            scans: of the whole group; a batch weighs as much as its share of them. None for a group of one batch.
            steps: of the whole run, for the schedule.

        Returns:
            a function that waits for the step and returns every loss term, unweighted, the weighted total `loss`,
            `gradient_norm` before clipping and `learning_rate`. It raises NonFiniteError where a loss, or without a
            loss scaler a gradient, is not finite; the weights then stay as they were.

        Raises:
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
        state.step += 1
        number, rows = state.step, self.update(parts, rate) if parts else None

        def read() -> dict[str, float]:
            terms = self.terms(number, parts, rows.read()) if rows else dict.fromkeys(NOTHING_LEARNED, 0.0)
            return {**terms, "learning_rate": rate}

        return read

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

    def update(self, parts: list[BatchTerms], rate: float) -> DeviceRows:
        """Let the optimiser take its step, unless something is not finite.

        Returns the terms of each batch, and the gradients' norm before they are clipped.
        """
        state, settings = self.state, self.settings
        state.scaler.unscale_(state.optimiser)
        parameters = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.optimiser.clip_norm or math.inf)
        rows = [*(part.values for part in parts), norm.to(parts[0].values.dtype)[None]]
        step_if_finite(state, rate, torch.cat(rows))
        if state.parallel is not None and not settings.sync_batch_norm:
            mean_statistics(state.parallel, self.processes)
        student, average = state.networks.student, state.networks.average
        if average is not None and settings.averaging is not None:
            update_average(average, student, decay_at(state.step - 1, settings.averaging))
        return DeviceRows(rows)

    def terms(self, step: int, parts: list[BatchTerms], read: list[list[float]]) -> dict[str, float]:
        """The terms of a step from those of its batches and the gradients' norm.

        Raises:
            NonFiniteError: one, or without a loss scaler the norm, is not finite; names the first such batch, for a
                norm the last one.
        """
        *rows, (norm,) = read
        found = [dict(zip(part.names, row, strict=True)) for part, row in zip(parts, rows, strict=True)]
        for part, terms in zip(parts, found, strict=True):
            if not math.isfinite(terms["loss"]):
                raise NonFiniteError(f"the loss is {terms['loss']}", step, part.loaded, terms)
        if not (math.isfinite(norm) or self.state.scaler.is_enabled()):
            raise NonFiniteError(f"the gradient's norm is {norm}", step, parts[-1].loaded, found[-1])
        means = {
            name: sum(part.share * terms[name] for part, terms in zip(parts, found, strict=True)) for name in found[0]
        }
        return {**means, "gradient_norm": norm}


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
