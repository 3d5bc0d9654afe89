"""Functions and commands run in forked processes, so that a crash, a hang or a kill is seen and harms nobody.

A fork of a process that has imported everything starts in 10 ms, against 5 s for a new one. The parent must only ever
import: threads (of zarr, of PyTorch) do not survive a fork.
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from common.networks.sparse import sparse
from polar_distill import COMMANDS, program

LIMIT_SECONDS = 60.0
"""A command that takes longer on these tiny files hangs."""

MEMORY_BYTES = 4 << 30
"""Address space that a child may take beyond what it starts with; what asks for more was not bounded."""

POLL_SECONDS = 0.003

SLOW_IMPORTS = (
    "stage1_dump_teacher.dump",
    "stage1_dump_teacher.teacher_training.train",
    "torch._dynamo",
)
"""What commands import only when they run."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: exit status; -1 if a signal ended it.
        signal: number of the signal that ended it, 0 for none.
        hung: whether it had to be stopped because it took too long.
        output: what it printed, errors included.
        value: what its function returned, through JSON.
    """

    status: int
    signal: int
    hung: bool
    output: str
    value: Any = None


def import_everything() -> None:
    """Import what the commands would, once, before anything is forked."""
    commands = [place.partition(":")[0] for listed in COMMANDS.values() for place, _ in listed.values()]
    for module in (*commands, *SLOW_IMPORTS):
        importlib.import_module(module)
    sparse()


class Child:
    """A forked process that runs one function; its output goes to a file.

    Args:
        function: returns something that JSON can hold.
        folder: gets the output.
    """

    def __init__(self, function: Callable[[], Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("*.output")))
        self.output = folder / f"{number}.output"
        self.value = folder / f"{number}.value"
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.output.touch()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(function, self.output, self.value)

    def kill_after(self, seconds: float) -> bool:
        """Kill the process (SIGKILL) so long after its start; whether it was still running."""
        status = self._wait_until(self.started + seconds)
        if status is not None:
            self.ended_with = status
            return False
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def wait(self, limit: float = LIMIT_SECONDS) -> Ended:
        """Wait for the end; stop it where it takes longer than `limit` seconds."""
        status = getattr(self, "ended_with", None)
        status = self._wait_until(self.started + limit) if status is None else status
        hung = status is None
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        output = self.output.read_text(encoding="utf-8", errors="replace")
        value = json.loads(self.value.read_text()) if self.value.exists() else None
        return Ended(max(ended, -1), -min(ended, 0), hung, output, value)

    def _wait_until(self, moment: float) -> int | None:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            if time.monotonic() >= moment:
                return None
            time.sleep(POLL_SECONDS)


def _be_child(function: Callable[[], Any], output: Path, value: Path) -> None:
    """Run the function as the whole of this process; never returns."""
    status = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        _limit_memory()
        # A fork loses PyTorch's pool of threads; it has to be made anew before several threads ask for it at once.
        torch.set_num_threads(1)
        result = function()
        value.write_text(json.dumps(result))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    # A core file for every crash that is looked for would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(function: Callable[[], Any], folder: Path, limit: float = LIMIT_SECONDS) -> Ended:
    """Run a function in a child and wait for its end."""
    return Child(function, folder).wait(limit)


def start_command(words: Iterable[Any], folder: Path) -> Child:
    """Start a command as the program `polar-distill` would run it."""
    return Child(lambda: program([str(word) for word in words], prog_name="polar-distill"), folder)


def run_command(words: Iterable[Any], folder: Path, limit: float = LIMIT_SECONDS) -> Ended:
    """Run a command and wait for its end."""
    return start_command(words, folder).wait(limit)
