"""Commands that meet a forged store, and what the forgers of scan files, manifests and archives share."""

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.faults.workshop import Case

LIMIT = 20.0
"""Seconds that a command may take on a forged file."""

SCAN_VIEW = "00/000001.v0"
NAME = f"sequences/{SCAN_VIEW}.zarr.zip"
TERMINAL = "\x1b]0;owned\x07\x1b[2J"
"""What would change the title of a terminal's window, sound its bell and clear it."""


def to_result(case: Case, store: Path) -> Sequence[object]:
    """A merge into a folder beside the store."""
    return ["merge", "--from", store, "--to", store.parent / "result"]


def to_lz4(case: Case, store: Path) -> Sequence[object]:
    """A conversion into a folder beside the store."""
    return ["convert", "--cache", store, "--to", store.parent / "result", "--set", "encoding.codec=lz4"]


def verify(case: Case, store: Path) -> Sequence[object]:
    """The command verify."""
    return ["verify", "--cache", store]


def info(case: Case, store: Path) -> Sequence[object]:
    """The command info."""
    return ["info", "--cache", store]
