"""Small dumps of made-up streets with the golden reduced teacher, and what the tests of stores ask of them."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from click.testing import Result

from common.targets.store.members import read_members
from stage1_dump_teacher.__main__ import main
from tests.shared.reduced import CONFIGS, DATASET, STREET_GRID, command, start

EXACT = tuple(f"encoding.{kind}=float32" for kind in ("pillar_features", "voxel_features", "logits"))
"""Settings that keep every number as it is."""

EXACT_FULL = ("splits=[train, val]", "views.count=2", "profile=custom", "voxel_features=true", *EXACT)
TRAIN = ("splits=[train, val]", "views.count=2", "profile=train")
FIRST, SECOND = "sequences/00/000000.v0.zarr.zip", "sequences/00/000001.v1.zarr.zip"
"""Two files of a store with two views."""


def dump_words(data: Path, teacher: Path, cache: Any, *overrides: str) -> list[str]:
    """Words of the dump command on a small grid."""
    small = (f"dataset={DATASET}", f"grid.shape={list(STREET_GRID)}", *overrides)
    words = ["--data", data, "--teacher", teacher, "--cache", cache, "--config", CONFIGS / "teachers/cylinder3d.yaml"]
    return ["dump", *map(str, words), "--device", "cpu", *(word for text in small for word in ("--set", text))]


def stage_one(*words: Any) -> Result:
    """Run a command of stage one in this process with one computing thread."""
    return command(main, *words)


def scan_files(folder: Path) -> dict[str, bytes]:
    """Content of every scan file of a store, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "sequences").rglob("*.zarr.zip"))
    }


def half_written(folder: Path) -> list[Path]:
    """Temporary files in a store."""
    return sorted(folder.rglob("*.partial"))


def start_dump(*words: Any) -> "subprocess.Popen[str]":
    """Start a dump in a process of its own."""
    return start("-m", "stage1_dump_teacher", *words)


def signal_after(process: "subprocess.Popen[str]", folder: Path, files: int, number: signal.Signals) -> str:
    """Wait until a dump has written some scan files, send it a signal, and return its output."""
    deadline = time.monotonic() + 120
    while len(list(folder.rglob("*.zarr.zip"))) < files:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the dump wrote nothing for two minutes"
        time.sleep(0.02)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=600)
    return output


def flip_byte_of(path: Path, array: str) -> None:
    """Change one byte in the middle of an array's data."""
    data = bytearray(path.read_bytes())
    members = read_members(bytes(data))
    start, end = next(place for name, place in members.places.items() if name.startswith(f"{array}/c"))
    data[(start + end) // 2] ^= 0x10
    path.write_bytes(data)
