"""Where the time of a training step goes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import click
import torch

from common.base.command_options import cache_option, data_option, device_option, set_option
from common.base.config import load_settings
from common.base.devices import select_device
from common.scans.dataset import epoch_order, open_dataset
from common.scans.scan_id import ScanId
from common.targets.teacher import TeacherLoader
from common.training.segmentation_loss import segmentation_terms
from common.training.small_batches import naming_small_batches
from stage2_train_student.command_options import (
    experiment_file,
    experiment_option,
    online_teacher,
    online_teacher_option,
)
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch, StudentData
from stage2_train_student.training.experiment import new_state, open_targets, student_data, with_targets
from stage2_train_student.training.precision import autocast, choose_kernels, in_float32
from stage2_train_student.training.scans import choose_scans
from stage2_train_student.training.step import StudentStep, targets_of


class StepClock:
    """Adds up the seconds of named parts of a step, the GPU's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time until the context is left under `part`."""
        start = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def profile_steps(step: StudentStep, data: StudentData, batches: Iterable[list[ScanId]]) -> dict[str, float]:
    """Median seconds of each part of a step; the first batch warms up and is not counted.

    Nothing is loaded ahead and on a GPU every part is waited for, so that a part's time is its own: a real step
    overlaps them and is shorter than their sum.
    """
    step.state.networks.student.train()
    step.state.networks.distillation.train()
    measured = []
    for scans in batches:
        clock = StepClock(step.class_weights.device)
        with clock("load"):
            loaded = data.load_batch(scans, 0)
        one_step(clock, step, loaded)
        measured.append(clock.seconds)
    counted = measured[1:] or measured
    return {part: median(seconds[part] for seconds in counted) for part in counted[0]}


def one_step(clock: StepClock, step: StudentStep, loaded: StudentBatch) -> None:
    """The parts of `StudentStep.launch` for one batch, one after another."""
    state, precision, device = step.state, step.settings.precision, step.class_weights.device
    with clock("copy to the device"):
        batch = loaded.batch.to(device)
    with clock("targets"):
        targets = targets_of(loaded, batch, step.online, device)
    with naming_small_batches(loaded.scans), autocast(precision, device), clock("forward"):
        outputs = in_float32(state.networks.student(batch))
    with clock("loss: cross entropy, lovasz"):
        terms = segmentation_terms(outputs.voxel_logits, batch.voxel_labels, step.class_weights)
    total = terms["cross_entropy"] + terms["lovasz"]
    if targets is not None:
        for name, term in state.networks.distillation.terms.items():
            with autocast(precision, device), clock(f"loss: {name}"):
                value = term(outputs, targets, batch)
            total = total + state.networks.distillation.weights[name] * value[name]
    state.optimiser.zero_grad(set_to_none=True)
    with clock("backward"):
        state.scaler.scale(total).backward()
    with clock("optimiser"):
        state.scaler.step(state.optimiser)
    state.scaler.update()


def profile_table(seconds: dict[str, float]) -> str:
    """The parts, their seconds and shares, as text."""
    total = sum(seconds.values())
    lines = [f"{'':32}{'seconds':>9}{'share':>8}"]
    lines += [f"{part:32}{value:9.4f}{100 * value / total:7.1f}%" for part, value in seconds.items()]
    return "\n".join([*lines, f"{'sum':32}{total:9.4f}{100:7.1f}%"])


@click.command()
@data_option
@experiment_option
@cache_option
@online_teacher_option
@click.option("--steps", type=click.IntRange(min=1), default=3, help="Measured after a first one.")
@device_option
@set_option
@click.pass_obj
def profile(
    load_teacher: TeacherLoader,
    data: Path,
    experiment: str,
    cache: str,
    teacher: Path | None,
    steps: int,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Print where the time of a training step goes. Nothing is written.

    \b
    Example:
      polar-distill profile --data dataset --experiment full --set batch_size=1
    """
    settings = load_settings(ExperimentSettings, experiment_file(experiment), overrides)
    settings = settings.model_copy(update={"validate_on": []})
    computing = select_device(device)
    choose_kernels(settings.precision, computing)
    dataset = open_dataset(data, settings.dataset)
    chosen = choose_scans(settings, dataset)
    live = online_teacher(settings, teacher, load_teacher, computing)
    source = open_targets(settings, dataset.label_map, chosen.train, cache, live)
    scans = with_targets(chosen, source).train
    torch.manual_seed(settings.seed)
    state = new_state(settings, dataset.label_map, source, computing)
    batches = islice(cycle(epoch_order(scans, settings.batch_size, settings.seed, 0)), steps + 1)
    weights = torch.from_numpy(dataset.label_map.class_weights()).to(computing)
    loader = student_data(settings, dataset, source, scans=scans)
    step = StudentStep(state, settings, weights, source.online)
    click.echo(profile_table(profile_steps(step, loader, batches)))
    click.echo(f"batches of {settings.batch_size} on {computing}, median of {steps} after one that warmed up")
