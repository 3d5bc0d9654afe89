"""Everything that a training run is at a moment, and its way to disk and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.base.config import Settings
from common.base.errors import CheckpointError
from common.base.text import printable
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.processes import ALONE, Processes, draw_apart
from common.training.recorder import flush_metrics
from common.training.resuming import (
    OTHER_GPUS,
    ScansOfSequences,
    check_same_scans,
    check_same_settings,
    checked_progress,
    load_strictly,
    random_state,
    set_random_state,
    with_later_settings,
)

STATE_FILE = "last.pt"
OTHER_PROCESSES = "another number of processes than before, so random numbers differ from those of an uninterrupted run"
COUNTERS = ("epoch", "step_in_epoch", "step", "best_miou", "validations_since_best", "validation_due")


class NamedNetworks(Protocol):
    """A named tuple of networks; None for one that the settings do not ask for."""

    def _asdict(self) -> dict[str, nn.Module | None]: ...


Networks = TypeVar("Networks", bound=NamedNetworks)


@dataclass
class TrainingState(Generic[Networks]):
    """What changes while training.

    Attributes:
        networks: by the names that they have in the saved state.
        optimiser: Adam over those that learn.
        scaler: of the loss, for float16; for others it does nothing.
        epoch: epochs finished.
        step_in_epoch: steps of the optimiser finished of the epoch under way.
        step: steps of the optimiser finished in all.
        best_miou: of all validations so far, in 0..1; -1 before the first.
        validations_since_best: validations after the one that gave `best_miou`.
        validation_due: whether the epoch that ended last is still to be validated.
        training_scans: that the run trains on; a resumed run must have the same.
        targets_hash: of what the targets are made by, None without targets; a resumed run must have the same.
        halted: 1 on the device once something was not finite: no step is taken after that.
        parallel: the networks as one that computes with other processes; None for one process alone.
    """

    networks: Networks
    optimiser: torch.optim.Adam
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_miou: float = -1.0
    validations_since_best: int = 0
    validation_due: bool = False
    training_scans: ScansOfSequences = field(default_factory=dict)
    targets_hash: str | None = None
    halted: torch.Tensor | None = None
    parallel: DistributedDataParallel | None = None

    def progress(self) -> dict[str, Any]:
        """The counters."""
        return {name: getattr(self, name) for name in COUNTERS}

    def save(self, folder: Path, settings: Settings, processes: Processes = ALONE) -> None:
        """Write the state whole or not at all.

        All processes call it, since each has random numbers of its own; the first one writes.
        """
        of_first, *of_others = random_states(processes)
        if not processes.first:
            return
        content = {
            "settings": settings.model_dump(mode="json"),
            **{name: network and network.state_dict() for name, network in self.networks._asdict().items()},
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": self.progress(),
            "random_state": of_first,
            "random_states_of_others": of_others,
            "targets_hash": self.targets_hash,
            "training_scans": self.training_scans,
        }
        flush_metrics(folder)
        save_checkpoint(folder / STATE_FILE, content)

    def restore(
        self, folder: Path, settings: Settings, may_change: set[str], processes: Processes = ALONE
    ) -> str | None:
        """Continue where `save` left off, random states included where there are as many processes as before.

        Settings may differ from the saved ones in those that `may_change` names. Returns a note of what else differs,
        None where nothing does.

        Raises:
            CheckpointError: there is no state, it is damaged, or it belongs to another run.
        """
        path = folder / STATE_FILE
        content = load_checkpoint(path)
        try:
            stored = with_later_settings(type(settings), content["settings"])
            check_same_settings(path, stored, settings.model_dump(mode="json"), may_change)
            check_same_scans(path, content.get("training_scans"), self.training_scans)
            check_same_targets(path, content.get("targets_hash"), self.targets_hash)
            for name, network in self.networks._asdict().items():
                if network is not None:
                    load_strictly(path, network, content[name], f"the {name} of the run")
            for group in content["optimiser"]["param_groups"]:
                group["fused"] = True
            self.optimiser.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content.get("scaler", {}))
            for name, value in checked_progress(content["progress"], self.progress()).items():
                setattr(self, name, value)
            random_states = [content["random_state"], *content.get("random_states_of_others", [])]
            if len(random_states) != processes.count:
                draw_apart(int(stored["seed"]), self.step, processes)
                return OTHER_PROCESSES
            same_gpus = set_random_state(random_states[processes.rank])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a training state of this program ({error!r}).") from error
        return None if same_gpus else OTHER_GPUS


def check_same_targets(path: Path, stored: str | None, current: str | None) -> None:
    """Raise a CheckpointError if a run had targets of another store or teacher."""
    if stored != current:
        raise CheckpointError(
            f"{path}: cannot resume with targets of another store or teacher ({printable(str(stored)[:12])} in "
            f"the run, {str(current)[:12]} now). Use the run's --cache or --teacher, or another run folder."
        )


def random_states(processes: Processes) -> list[dict[str, Any]]:
    """What `random_state` returns in each process, by rank."""
    own = random_state()
    of_cpus, of_gpus = processes.gather(own["cpu"]), [processes.gather(state) for state in own["cuda"]]
    return [{"cpu": cpu, "cuda": [of_gpu[rank] for of_gpu in of_gpus]} for rank, cpu in enumerate(of_cpus)]
