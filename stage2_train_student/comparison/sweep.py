"""Many experiments from one cache: each run a process of its own, what is finished skipped, what stopped resumed."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from signal import SIGTERM
from typing import Literal, NamedTuple, NoReturn

from tqdm import tqdm

from common.base.config import load_settings
from common.base.errors import CheckpointError, PolarDistillError, SettingsError, TrainingError
from common.base.signals import STARTED_BY, StopRequest
from common.targets.store import TargetStore
from common.training.recorder import METRICS_FILE, SETTINGS_FILE
from common.training.resuming import check_same_settings
from common.training.run_lock import locked
from common.training.state import check_same_targets
from stage2_train_student.command_options import experiment_file
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.finished_run import FinishedRun, read_finished
from stage2_train_student.training.runs import run_settings
from stage2_train_student.training.state import may_change

LOG_FILE = "train.log"
POLL_SECONDS = 0.2
SECONDS_TO_STOP = 10.0
"""How long a run may take to end after it was told to end at once."""

LOG_SECONDS = 30
"""Between two updates of a progress bar in a log."""


class PlannedRun(NamedTuple):
    """One experiment with one seed.

    Attributes:
        name: such as full/seed0.
        folder: of the run.
        settings: with the seed and everything overridden.
        words: options of the train command that say so.
    """

    name: str
    folder: Path
    settings: ExperimentSettings
    words: list[str]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        run: the run.
        status: finished; stopped, to go on another time; or failed.
        reason: why it failed.
    """

    run: PlannedRun
    status: Literal["finished", "stopped", "failed"]
    reason: str = ""


@dataclass(frozen=True)
class Child:
    """A run that is being trained."""

    run: PlannedRun
    process: "subprocess.Popen[bytes]"


def plan_runs(
    experiments: Sequence[str], seeds: Sequence[int], out: Path, overrides: Sequence[str]
) -> list[PlannedRun]:
    """All experiments with the first seed, then all with the next.

    Args:
        experiments: names of experiments, or paths of their files.
        seeds: a run of each experiment with each.
        out: gets a folder of each experiment, with one of each seed in it.
        overrides: `key=value`, for all runs.

    Raises:
        SettingsError: an experiment is unknown, two share a name, or the overrides set the seed.
    """
    if any(override.partition("=")[0].strip() == "seed" for override in overrides):
        raise SettingsError("--set seed=... contradicts --seeds; name the seeds there")
    files = list(dict.fromkeys(experiment_file(experiment) for experiment in experiments))
    if len({file.stem for file in files}) < len(files):
        raise SettingsError(
            f"two experiments have the same name: {', '.join(map(str, files))}; rename one of the files"
        )
    runs = []
    for seed in dict.fromkeys(seeds):
        for file in files:
            changes = (*overrides, f"seed={seed}")
            folder = out / file.stem / f"seed{seed}"
            words = ["--experiment", str(file), "--run", str(folder)]
            words += [word for change in changes for word in ("--set", change)]
            settings = load_settings(ExperimentSettings, file, changes)
            runs.append(PlannedRun(f"{file.stem}/seed{seed}", folder, settings, words))
    return runs


def refuse_other_runs(runs: Sequence[PlannedRun], cache: str) -> None:
    """Make sure that what is in the folders of the runs are these runs, begun or finished.

    Raises:
        TrainingError: lists those that are others: of other settings, of another cache, or trained longer.
    """
    hashes: dict[str, str] = {}
    problems = []
    for run in runs:
        if not (run.folder / SETTINGS_FILE).is_file():
            continue
        try:
            check_own_settings(run)
            finished = read_finished(run.folder)
            if finished is None:
                continue
            if run.settings.targets == "cache":
                if cache not in hashes:
                    hashes[cache] = TargetStore.open(cache).identity.hash
                check_same_targets(run.folder, finished.targets_hash, hashes[cache])
            refuse_longer(run, finished)
        except PolarDistillError as error:
            problems.append(error.message)
    if problems:
        lines = "\n".join(problems)
        raise TrainingError(
            f"{len(problems)} of {len(runs)} run folders hold other runs; nothing was started.\n{lines}"
        )


def check_own_settings(run: PlannedRun) -> None:
    """Hold the settings in a run's folder against those asked for; damaged ones are left to its training state.

    Raises:
        CheckpointError: lists each setting that differs.
    """
    try:
        stored = run_settings(run.folder).model_dump(mode="json")
    except SettingsError as error:
        tqdm.write(f"note: {error.message.splitlines()[0]} {run.name} goes on from its training state, if that fits.")
        return
    check_same_settings(run.folder, stored, run.settings.model_dump(mode="json"), may_change(run.settings))


def refuse_longer(run: PlannedRun, finished: FinishedRun) -> None:
    """Make sure that a finished run has not trained beyond what is asked for now.

    Raises:
        TrainingError: it has.
    """
    epochs, steps = run.settings.epochs, run.settings.steps
    if finished.epoch > epochs or (steps is not None and finished.step > steps):
        asked = f"{epochs} epochs" + ("" if steps is None else f" and at most {steps} steps")
        raise TrainingError(
            f"{run.folder}: trained for {finished.epoch} epochs and {finished.step} steps, longer than the {asked} "
            "asked for now. Choose another --out folder."
        )


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has ended as its settings ask; not one whose settings must be written again."""
    try:
        run_settings(run.folder)
    except (CheckpointError, SettingsError):
        return False
    finished = read_finished(run.folder)
    return finished is not None and finished.matches(run.settings)


def train_all(runs: Sequence[PlannedRun], common: Sequence[str], jobs: int, threads: int) -> list[Outcome]:
    """Train the runs that are not finished, some at a time; a run that fails does not end the others.

    On a request to stop every run saves its state and ends; no other is started.

    Args:
        runs: see `plan_runs`.
        common: options of the train command for all of them.
        jobs: how many train at a time.
        threads: of each.

    Returns:
        an outcome of each run that was finished already or started, in the order of their ends.
    """
    outcomes = [Outcome(run, "finished") for run in runs if is_finished(run)]
    skipped = {outcome.run.folder for outcome in outcomes}
    waiting = [run for run in runs if run.folder not in skipped]
    told = False
    with (
        StopRequest() as stop,
        terminating_children() as children,
        progress_bar(len(runs), len(outcomes)) as bar,
    ):
        while children or (waiting and not stop):
            while waiting and len(children) < jobs and not stop:
                run = waiting.pop(0)
                try:
                    children.append(start(run, common, threads))
                except (PolarDistillError, OSError) as error:
                    outcomes.append(Outcome(run, "failed", str(error)))
                    bar.update()
            if stop and not told:
                for child in children:
                    child.process.send_signal(SIGTERM)
                told = True
            for child in [child for child in children if child.process.poll() is not None]:
                children.remove(child)
                outcomes.append(outcome_of(child))
                bar.update()
            bar.set_postfix_str("; ".join(progress(child.run) for child in children), refresh=False)
            bar.update(0)
            time.sleep(POLL_SECONDS)
    return outcomes


def progress_bar(runs: int, finished: int) -> "tqdm[NoReturn]":
    """A bar over runs, redrawn each second; in a log less often."""
    interval = 1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(total=runs, initial=finished, unit="run", desc="sweep", smoothing=0, mininterval=interval, miniters=0)


def start(run: PlannedRun, common: Sequence[str], threads: int) -> Child:
    """Start or resume a run; its output goes to the end of its log. It stops by itself where this process is killed.

    Raises:
        TrainingError: it is being trained by another process, which is named.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "polar_distill", "train", *common, *run.words, "--resume"]
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TQDM_MININTERVAL": str(LOG_SECONDS),
        "PYTHONUNBUFFERED": "1",
        STARTED_BY: str(os.getpid()),
    }
    with (run.folder / LOG_FILE).open("ab", buffering=0) as log:
        # The run takes the lock again, for itself: this time only so that no log is written into beside another run.
        with locked(run.folder):
            log.write(f"$ {shlex.join(command)}\n".encode())
        # In a group of its own, so that Ctrl-C reaches it once, through this process.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | settings, process_group=0
        )
    return Child(run, process)


def outcome_of(child: Child) -> Outcome:
    """How a run whose process has ended did."""
    code = child.process.returncode
    if code == 0 and is_finished(child.run):
        return Outcome(child.run, "finished")
    if code in (0, -SIGTERM):
        return Outcome(child.run, "stopped")
    how = f"exit status {code}" if code > 0 else f"ended by signal {-code}"
    return Outcome(child.run, "failed", f"{how}: {last_line(child.run.folder / LOG_FILE)}")


@contextmanager
def terminating_children() -> Iterator[list[Child]]:
    """A list whose children do not outlive it, whatever happens."""
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:
            child.process.send_signal(SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def progress(run: PlannedRun) -> str:
    """Where a run stands, from the last line it recorded."""
    try:
        record = json.loads(last_line(run.folder / METRICS_FILE))
        value = f"mIoU {100 * record['miou']:.1f}" if "miou" in record else f"loss {record['loss']:.3f}"
        return f"{run.name} step {record['step']} {value}"
    except (OSError, ValueError, KeyError, TypeError):
        return run.name


def last_line(path: Path, most: int = 4096) -> str:
    """The last line of a file that is not empty, at most its last `most` bytes; empty if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        text = file.read().decode(errors="replace")
    lines = chain.from_iterable(line.split("\r") for line in text.splitlines())
    return ([line.strip() for line in lines if line.strip()] or [""])[-1]
