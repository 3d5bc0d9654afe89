"""Many experiments from one cache: each run a process of its own, what is finished skipped, what stopped resumed."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
Process = subprocess.Popen[bytes]
POLL_SECONDS = 0.2
SECONDS_TO_STOP = 10.0
"""How long a run may take to end after it was told to end at once."""

LOG_SECONDS = 30
"""Between two updates of a progress bar in a log."""


class Outcome(NamedTuple):
    """How a run ended: finished; stopped, to go on another time; or failed, for a reason."""

    run: PlannedRun
    status: Literal["finished", "stopped", "failed"]
    reason: str = ""


def train_all(runs: Sequence[PlannedRun], common: Sequence[str], jobs: int, threads: int) -> list[Outcome]:
    """Train the runs that are not finished, `jobs` at a time; a run that fails does not end the others.

    On a request to stop every run saves its state and ends; no other is started. The options `common` of the train
    command are for all runs, and so is the number of threads.

    Returns:
        an outcome of each run that was finished already or started, in the order of their ends.
    """
    outcomes, waiting = without_finished(runs)
    told = False
    with StopRequest() as stop, terminating_children() as children, progress_bar(len(runs), len(outcomes)) as bar:
        while children or (waiting and not stop):
            while waiting and len(children) < jobs and not stop:
                run = waiting.pop(0)
                try:
                    children[start(run, common, threads)] = run
                except (PolarDistillError, OSError) as error:
                    outcomes.append(Outcome(run, "failed", str(error)))
                    bar.update()
            if stop and not told:
                for process in children:
                    process.send_signal(SIGTERM)
                told = True
            for process in [process for process in children if process.poll() is not None]:
                outcomes.append(outcome_of(children.pop(process), process.returncode))
                bar.update()
            bar.set_postfix_str("; ".join(map(progress, children.values())), refresh=False)
            bar.update(0)
            time.sleep(POLL_SECONDS)
    return outcomes


def without_finished(runs: Sequence[PlannedRun]) -> tuple[list[Outcome], list[PlannedRun]]:
    """Outcomes of the runs that are finished already, and the runs that are not."""
    waiting = [run for run in runs if not is_finished(run)]
    return [Outcome(run, "finished") for run in runs if run not in waiting], waiting


def progress_bar(runs: int, finished: int) -> "tqdm[NoReturn]":
    """A bar over runs, redrawn each second; in a log less often."""
    interval = 1 if sys.stderr.isatty() else LOG_SECONDS
    return tqdm(total=runs, initial=finished, unit="run", desc="sweep", smoothing=0, mininterval=interval, miniters=0)


def start(run: PlannedRun, common: Sequence[str], threads: int) -> Process:
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
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | settings, process_group=0
        )


def outcome_of(run: PlannedRun, code: int) -> Outcome:
    """How a run did whose process has ended with an exit status, or by the signal -`code`."""
    if code == 0 and is_finished(run):
        return Outcome(run, "finished")
    if code in (0, -SIGTERM):
        return Outcome(run, "stopped")
    how = f"exit status {code}" if code > 0 else f"ended by signal {-code}"
    return Outcome(run, "failed", f"{how}: {last_line(run.folder / LOG_FILE)}")


@contextmanager
def terminating_children() -> Iterator[dict[Process, PlannedRun]]:
    """Runs by the process that trains each; no process outlives the block, whatever happens."""
    children: dict[Process, PlannedRun] = {}
    try:
        yield children
    finally:
        for process in children:
            process.send_signal(SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for process in children:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def progress(run: PlannedRun) -> str:
    """Where a run stands, from the last line it recorded."""
    try:
        record = json.loads(last_line(run.folder / METRICS_FILE))
        value = f"mIoU {100 * record['miou']:.1f}" if "miou" in record else f"loss {record['loss']:.3f}"
        return f"{run.name} step {record['step']} {value}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return run.name


def last_line(path: Path, most: int = 4096) -> str:
    """The last line of a file that is not blank, of its last `most` bytes; empty if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most))
        text = file.read().decode(errors="replace")
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]
