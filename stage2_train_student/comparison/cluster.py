"""A sweep by many machines: each training is a task of a Ray cluster, tried again where its machine is lost."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.base.cluster import NO_MACHINE, WORKER_CPUS, Share, connected, machines, share_of, work_in
from common.base.errors import TrainingError
from common.base.signals import StopRequest
from common.training.run_lock import LOCK_FILE, locked
from stage2_train_student.comparison.planned_runs import PlannedRun
from stage2_train_student.comparison.sweep import Outcome, progress, progress_bar, train_all, without_finished

POLL_SECONDS = 1.0
MOST_LOSSES = 10
"""How often a run is tried again after its machine was lost."""

ORPHAN_SECONDS = 180.0
"""How long a lost run is waited for: it may be saving its state, or a file server may hold its lock."""


def train_here(run: PlannedRun, common: Sequence[str], threads: int, folder: Path, patience: float) -> list[Outcome]:
    """Train one run on the machine of this process, see `train_all`.

    Paths are those of `folder`. For `patience` seconds another process may still hold the run's folder.
    """
    work_in(folder)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            with locked(run.folder):
                break
        except TrainingError:
            # A folder that cannot be written to is refused at once, without a wait for its lock.
            time.sleep(POLL_SECONDS)
    return train_all([run], common, 1, threads)


class Runs:
    """Runs that the cluster trains or will train as soon as it has room.

    Attributes:
        left: by the task that trains each.
    """

    def __init__(self, share: Share, common: Sequence[str], threads: int) -> None:
        import ray

        self.left: dict[Any, PlannedRun] = {}
        self._task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0)(train_here)
        self._options = (list(common), threads, Path.cwd())
        self._losses: Counter[Path] = Counter()
        self._stopping = False
        self._share, self._alone = share, False

    def add(self, run: PlannedRun) -> None:
        """Train a run as well."""
        patience = ORPHAN_SECONDS if self._losses[run.folder] else 0.0
        self.left[self._task.remote(run, *self._options, patience)] = run

    def stop(self) -> None:
        """Let every run that is being trained save its state and end, and start no other."""
        import ray

        if not self._stopping:
            for task in self.left:
                ray.cancel(task)
        self._stopping = True

    def collect(self) -> list[Outcome]:
        """Wait a moment for runs to end; lost ones are tried again."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        outcomes = []
        alone = not any(map(self._share.places, machines().values()))
        if alone and not self._alone:
            tqdm.write(f"note: {NO_MACHINE.format(self._share)}")
        self._alone = alone
        for task in ray.wait(list(self.left), timeout=POLL_SECONDS)[0]:
            run = self.left.pop(task)
            try:
                outcomes += [outcome._replace(run=run) for outcome in ray.get(task)]
            except TaskCancelledError:
                pass  # before it was started
            except RayTaskError as error:
                outcomes.append(Outcome(run, "failed", str(error.cause)))
            except RayError as error:
                outcomes += self._lost(run, str(error).partition("\n")[0])
        return outcomes

    def _lost(self, run: PlannedRun, reason: str) -> list[Outcome]:
        """Try a run again whose machine or process is gone; the outcome where that is of no use."""
        self._losses[run.folder] += 1
        if self._stopping:
            return [Outcome(run, "stopped")]
        if self._losses[run.folder] > MOST_LOSSES:
            return [Outcome(run, "failed", f"lost {MOST_LOSSES} times: {reason}")]
        tqdm.write(f"note: {run.name} lost its machine and goes on elsewhere. {reason}")
        self.add(run)
        return []


def train_on_cluster(
    runs: Sequence[PlannedRun], common: Sequence[str], address: str, device: str, threads: int | None
) -> list[Outcome]:
    """As `train_all`, by all machines of a Ray cluster, as many runs at a time as there is room for.

    The options `common` are without the device: `auto`, `cuda` or `cpu`. For `address` see `connected`. Without a
    number of threads a run has those of its share of a machine, at most four.

    Raises:
        SettingsError: no cluster answers, or it lacks the device.
    """
    outcomes, waiting = without_finished(runs)
    with connected(address), StopRequest() as stop, progress_bar(len(runs), len(outcomes)) as bar:
        share = share_of(device, threads or WORKER_CPUS)
        trained = Runs(share, [*common, "--device", share.device], threads or max(1, min(share.cpus, WORKER_CPUS)))
        for run in waiting:
            trained.add(run)
        while trained.left:
            if stop:
                trained.stop()
            for outcome in trained.collect():
                outcomes.append(outcome)
                bar.update()
            bar.set_postfix_str("; ".join(progress(run) for run in trained.left.values() if is_held(run)), False)
            bar.update(0)
    return outcomes


def is_held(run: PlannedRun) -> bool:
    """Whether a process trains a run, or was lost with it."""
    lock = run.folder / LOCK_FILE
    return lock.is_file() and lock.stat().st_size > 0
