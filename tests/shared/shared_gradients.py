"""Run by torchrun: how far losses, gradients and steps of several processes are from those of one, in float64.

    torchrun --nproc-per-node=2 -m tests.shared.shared_gradients DATA CACHE

In float32 rounding alone moves gradients of a network this deep by 1e-4, differently on every kind of CPU, and grows
from step to step: it hides what is not exact.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.scans.dataset import open_dataset
from common.scans.label_map import load_label_map
from common.scans.scan_batch import ScanBatch
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.teacher_targets import TeacherTargets
from common.training.processes import ALONE, Processes, started_processes
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch
from stage2_train_student.training.experiment import TargetSource, new_state, student_data
from stage2_train_student.training.parallel import parallel
from stage2_train_student.training.state import StudentState
from stage2_train_student.training.step import StudentStep, losses, targets_of
from tests.shared.reduced import FULL_LAYERS, NARROW, STREET_GRID, reduced_experiment

CPU = torch.device("cpu")
SIZES = (3, 1)
"""Scans in a batch: unequal shares for two processes, and none for one of them."""

CURVE = (range(4), range(4, 5), range(1, 5), range(1))
"""Frames of the batch of each step: two epochs over five scans."""

NOTHING_BY_CHANCE = ("student.dropblock=1e-12", "student.max_points_per_pillar=100000")
WEIGHTED = ("distillation.confidence=true", "distillation.trust_labels=true")
"""In the curves, beside the equal weights of the single passes."""

EVERY_VOXEL = ("distillation.support=dense", "distillation.logit_threshold=null")


class Result(NamedTuple):
    """Loss terms, gradients by name, running statistics by name."""

    terms: dict[str, float]
    gradients: dict[str, torch.Tensor]
    statistics: dict[str, torch.Tensor]


def in_float64(record: Any) -> Any:
    """A copy of a dataclass with its float tensors in float64."""
    tensors = {name: value for name, value in vars(record).items() if isinstance(value, torch.Tensor)}
    return replace(record, **{name: value.double() for name, value in tensors.items() if value.is_floating_point()})


def settings_in_float64(*overrides: str) -> ExperimentSettings:
    """A reduced experiment in which nothing is left to chance."""
    return reduced_experiment(STREET_GRID, NARROW, *NOTHING_BY_CHANCE, *EVERY_VOXEL, *overrides)


def load(data: Path, cache: Path, frames: Iterable[int], processes: Processes) -> tuple[StudentBatch, TeacherTargets]:
    """This process's share of a batch, or the stand-in where it has none, and its targets; all in float64."""
    settings = reduced_experiment(STREET_GRID)
    source = TargetSource(store=TargetStore.open(cache))
    loader = student_data(settings, open_dataset(data, settings.dataset), source)
    loaded = loader.load_batch([ScanId("00", f"{frame:06d}") for frame in frames], 0, processes.shard)
    targets = in_float64(targets_of(loaded, loaded.batch, None, CPU))
    targets = replace(targets, layers={name: in_float64(layer) for name, layer in targets.layers.items()})
    return replace(loaded, batch=in_float64(loaded.batch), targets=[]), targets


def fresh_state(settings: ExperimentSettings, processes: Processes) -> tuple[StudentState, torch.Tensor]:
    """Untrained networks in float64, shared by the processes, and the weights of the classes."""
    label_map = load_label_map(settings.dataset)
    torch.manual_seed(0)
    state = new_state(settings, label_map, TargetSource(channels=FULL_LAYERS), CPU)
    networks_of(state).double().train()
    state.parallel = parallel(state.networks.student, state.networks.distillation, settings.sync_batch_norm, processes)
    return state, torch.from_numpy(label_map.class_weights()).double()


def networks_of(state: StudentState) -> torch.nn.ModuleList:
    """Both networks of a state as one module."""
    return torch.nn.ModuleList((state.networks.student, state.networks.distillation))


def backward(data: Path, cache: Path, scans: int, processes: Processes) -> Result:
    """One backward pass of fresh networks over a batch that the processes share."""
    state, weights = fresh_state(settings_in_float64(), processes)
    loaded, targets = load(data, cache, range(scans), processes)
    batch = loaded.batch
    if not loaded.scans:
        batch, targets = batch.without_scans(), targets.without_scans()
    arguments = (batch, targets, weights, "float32", processes)
    both = state.parallel
    loss, terms = (
        both(losses, *arguments) if both else losses(state.networks.student, state.networks.distillation, *arguments)
    )
    (processes.count * loss).backward()
    networks = networks_of(state)
    return Result(
        {name: value.item() for name, value in {**terms, "loss": loss}.items()},
        {name: parameter.grad for name, parameter in networks.named_parameters()},
        {name: buffer.clone() for name, buffer in networks.named_buffers() if buffer.is_floating_point()},
    )


def curve(data: Path, cache: Path, processes: Processes) -> list[dict[str, float]]:
    """What a step returns for each batch of `CURVE`."""
    settings = settings_in_float64(*WEIGHTED)
    state, weights = fresh_state(settings, processes)
    steps = []
    for frames in CURVE:
        loaded, targets = load(data, cache, frames, processes)

        def teacher(_: ScanBatch, targets: TeacherTargets = targets) -> TeacherTargets:
            return targets

        one_step = StudentStep(state, settings, weights, teacher, processes)
        steps.append(one_step([loaded], steps=len(CURVE)))
    return steps


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """2-norm of the difference of all tensors together, relative to the second."""
    assert left.keys() == right.keys()
    one, other = (torch.cat([values[name].flatten() for name in sorted(right)]) for values in (left, right))
    return float((one - other).norm() / other.norm())


def main(data: Path, cache: Path) -> None:
    """Print one JSON line for each batch size: the terms of both, and relative distances; and one for the curves."""
    # What the losses compute in float32 elsewhere.
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.set_num_threads(1)
    with started_processes("cpu") as processes:
        for scans in SIZES:
            shared = backward(data, cache, scans, processes)
            if not processes.first:
                continue
            alone = backward(data, cache, scans, ALONE)
            found = {
                "scans": scans,
                "shared": shared.terms,
                "alone": alone.terms,
                "gradients": distance(shared.gradients, alone.gradients),
                "statistics": distance(shared.statistics, alone.statistics),
            }
            print(json.dumps(found), flush=True)
        together = curve(data, cache, processes)
        if processes.first:
            print(json.dumps({"together": together, "alone": curve(data, cache, ALONE)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
