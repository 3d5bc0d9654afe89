"""Stopping long work at a point where nothing is lost."""

import os
import signal
from types import FrameType
from typing import Any

import click

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C stopped, as shells have it."""

STARTED_BY = "POLAR_DISTILL_STARTED_BY"
"""Environment variable: id of the process that started this one and that this one is not to outlive."""


class StopRequest:
    """True once the process was asked to end (Ctrl-C, SIGTERM), or the one in `STARTED_BY` has ended, even by a kill.

    A second Ctrl-C ends the process at once.

    Use as a context manager in the main thread; the previous handlers come back when it is left.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}
        self._started_by = os.environ.get(STARTED_BY)

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        if not self._requested and self._started_by not in (None, str(os.getppid())):
            # The operating system gives children of a process that has ended another parent.
            self._requested = True
            click.echo(f"process {self._started_by}, which started this one, has ended: stopping after this step")
        return self._requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        click.echo(f"\n{signal.Signals(number).name}: stopping after this step; once more to stop at once", err=True)
