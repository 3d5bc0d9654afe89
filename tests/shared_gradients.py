"""Run by torchrun: how far losses and gradients of several processes are from those of one process, in float64.

    torchrun --nproc-per-node=2 -m tests.shared_gradients DATA CACHE

In float32 rounding alone moves gradients of a network this deep by 1e-4, and hides what is not exact.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.label_map import load_label_map
from common.processes import ALONE, Processes, started_processes
from common.scan_batch import ScanBatch
from common.semantic_kitti import ScanId
from common.target_store import TargetStore
from common.teacher_targets import TeacherTargets
from stage2_train_student.experiment import TargetSource, new_state, student_data
from stage2_train_student.parallel import parallel
from stage2_train_student.step import losses, targets_of
from tests.reduced import FULL_LAYERS, STREET_GRID, reduced_experiment

CPU = torch.device("cpu")
SIZES = (3, 1)
"""Scans in a batch: unequal shares for two processes, and none for one of them."""

NOTHING_BY_CHANCE = ("student.dropblock=1e-12", "student.max_points_per_pillar=100000")
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


def load(data: Path, cache: Path, scans: int, processes: Processes) -> tuple[ScanBatch, TeacherTargets]:
    """This process's share of a batch of the first scans, with targets."""
    settings = reduced_experiment(STREET_GRID)
    source = TargetSource(store=TargetStore.open(cache))
    loader = student_data(settings, data, load_label_map(settings.dataset), source)
    names = [ScanId("00", f"{frame:06d}") for frame in range(scans)]
    loaded = loader.load_batch(names, 0, processes.shard)
    batch, targets = in_float64(loaded.batch), in_float64(targets_of(loaded, loaded.batch, None, CPU))
    targets = replace(targets, layers={name: in_float64(layer) for name, layer in targets.layers.items()})
    return (batch, targets) if loaded.scans else (batch.without_scans(), targets.without_scans())


def backward(data: Path, cache: Path, scans: int, processes: Processes) -> Result:
    """One backward pass of fresh networks over a batch that the processes share."""
    settings = reduced_experiment(STREET_GRID, *NOTHING_BY_CHANCE, *EVERY_VOXEL)
    label_map = load_label_map(settings.dataset)
    torch.manual_seed(0)
    state = new_state(settings, label_map, TargetSource(channels=FULL_LAYERS), CPU)
    networks = torch.nn.ModuleList((state.student, state.distillation)).double().train()
    both = parallel(state.student, state.distillation, settings.sync_batch_norm, processes)
    weights = torch.from_numpy(label_map.class_weights()).double()
    arguments = (*load(data, cache, scans, processes), weights, "float32", processes)
    loss, terms = both(losses, *arguments) if both else losses(state.student, state.distillation, *arguments)
    (processes.count * loss).backward()
    return Result(
        {name: value.item() for name, value in {**terms, "loss": loss}.items()},
        {name: parameter.grad for name, parameter in networks.named_parameters()},
        {name: buffer.clone() for name, buffer in networks.named_buffers() if buffer.is_floating_point()},
    )


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """2-norm of the difference of all tensors together, relative to the second."""
    assert left.keys() == right.keys()
    one, other = (torch.cat([values[name].flatten() for name in sorted(right)]) for values in (left, right))
    return float((one - other).norm() / other.norm())


def main(data: Path, cache: Path) -> None:
    """Print one JSON line for each batch size: the terms of both, and relative distances."""
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
