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

from common.base.errors import PolarDistillError
from common.base.signals import STARTED_BY, StopRequest
from common.training.recorder import METRICS_FILE
from common.training.run_lock import locked
from stage2_train_student.comparison.planned_runs import PlannedRun, is_finished

LOG_FILE = "train.log"
POLL_SECONDS = 0.2
SECONDS_TO_STOP = 10.0
"""How long a run may take to end after it was told to end at once."""

LOG_SECONDS = 30
"""Between two updates of a progress bar in a log."""


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


def train_all(runs: Sequence[PlannedRun], common: Sequence[str], jobs: int, threads: int) -> list[Outcome]:
    """Train the runs that are not finished, some at a time; a run that fails does not end the others.

    On a request to stop every run saves its state and ends; no other is started.

    Args:
        runs: see `planned_runs.plan_runs`.
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
    with StopRequest() as stop, terminating_children() as children, progress_bar(len(runs), len(outcomes)) as bar:
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return run.name


def last_line(path: Path, most: int = 4096) -> str:
    """The last line of a file that is not empty, at most its last `most` bytes; empty if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        text = file.read().decode(errors="replace")
    lines = chain.from_iterable(line.split("\r") for line in text.splitlines())
    return ([line.strip() for line in lines if line.strip()] or [""])[-1]
