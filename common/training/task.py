"""What a `Trainer` trains: a step, and what stands around it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from common.scans.dataset import Dataset
from common.scans.scan_id import ScanId
from common.training.predictor import Predictor
from common.training.schedule import ScheduleSettings
from common.training.state import TrainingState

Batch = TypeVar("Batch")
StepTerms = Callable[[], dict[str, float]]
"""Waits for a step and returns its loss terms."""


class LoopSettings(Protocol):
    """What the loop asks of an experiment's settings."""

    @property
    def epochs(self) -> int: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def early_stopping(self) -> int | None: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def validate_every(self) -> int: ...

    @property
    def save_every(self) -> int | None: ...

    @property
    def seed(self) -> int: ...


def loop_may_change(schedule: ScheduleSettings) -> set[str]:
    """Settings of the loop that a resumed run may change; not `epochs` where the schedule is spread over them."""
    names = {"steps", "loading_threads", "validate_every", "save_every", "early_stopping"}
    return names | {"epochs"} if schedule.kind == "constant" else names


class Task(ABC, Generic[Batch]):
    """What is trained: a step, and what stands around it. A `Trainer` does the rest.

    Attributes:
        best: file of the network with the best validation, in the run's folder.
        last: file of the network as it is.
        left_over: files that must not be there when a run begins.
        settings: the experiment's `Settings`, with what `LoopSettings` names.
        state: what changes.
        dataset: the scans.
        train: scans to train on.
        validation: scans to validate on.
        may_change: settings that a resumed run may change, see `loop_may_change`.
        accumulate: batches of one step.
    """

    best: ClassVar[str]
    last: ClassVar[str]
    left_over: ClassVar[tuple[str, ...]] = ()
    settings: Any
    state: TrainingState[Any]
    dataset: Dataset
    train: list[ScanId]
    validation: list[ScanId]
    may_change: set[str]
    accumulate: int = 1

    @abstractmethod
    def load(self, batches: list[list[ScanId]], epoch: int) -> Iterator[Batch]:
        """Batches of an epoch, loaded ahead."""

    @abstractmethod
    def step(self, batches: Iterable[Batch], scans: int, steps: int) -> StepTerms:
        """One step of the optimiser, counted in `state.step`; its device may still be taking it.

        `scans` is their number in all of its batches, `steps` that of the whole run.

        Returns:
            a function that waits for the step and returns its loss terms, with their sum as `loss`. It raises
            TrainingError where something is not finite; the weights then stay as they were.
        """

    @abstractmethod
    def predictor(self) -> Predictor:
        """The network that is validated, ready to predict."""

    @abstractmethod
    def write_network(self, path: Path) -> None:
        """Write that network alone, in its published layout."""

    def begin(self) -> None:
        """Before the first step, once the run's folder is this run's."""

    def end(self, finished: bool) -> None:
        """After the last step; `finished`: as the settings ask, not because of a stop."""
