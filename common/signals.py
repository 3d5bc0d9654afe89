"""Stopping long work at a point where nothing is lost."""

import signal
from types import FrameType
from typing import Any

import click


class StopRequest:
    """True once the process was asked to end (Ctrl-C, SIGTERM). A second Ctrl-C ends it at once.

    Use as a context manager in the main thread; the previous handlers come back when it is left.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self._requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        click.echo(f"\n{signal.Signals(number).name}: stopping after this step; once more to stop at once", err=True)
