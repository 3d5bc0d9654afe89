"""One process at a time writes into the folder of a run; the lock ends with its process, however that ends."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from common.base.errors import TrainingError
from common.base.text import printable
from common.base.untrusted_json import parse_json
from common.training.processes import ALONE, Processes

LOCK_FILE = "run.lock"
"""Stays in the folder, empty: were it removed, two processes could lock two files of this name."""

PATIENCE_SECONDS = 1.0
"""How long a lock is tried for: a sweep holds it for a moment before it starts a run."""


@contextmanager
def locked(folder: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Hold a run's folder, which is made where there is none. The first of several processes holds it for all.

    The operating system gives the lock back when the process ends, be it by `kill -9`.

    Raises:
        TrainingError: another process holds the folder, which is named; or the folder cannot be written to.
    """
    file, problem = None, None
    if processes.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = locked_file(folder / LOCK_FILE)
            problem = None if file else in_use(folder)
        except OSError as error:
            problem = (
                f"{folder}: a run cannot be written here ({error.strerror}). Choose another folder, or make it "
                "writable."
            )
    if processes.any(problem):
        raise TrainingError(problem or f"{folder}: the first process cannot train here.")
    try:
        yield
    finally:
        if file:
            file.truncate(0)
            file.close()


def locked_file(path: Path) -> IO[bytes] | None:
    """The file, open, locked and with a note of this process in it; None where another process has it."""
    # Not emptied on opening: it may be another's, with a note of who that is.
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.05)
        except OSError:
            file.close()
            raise
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
    return file


def in_use(folder: Path) -> str:
    """Says which process holds a run's folder, and what to do."""
    try:
        note = parse_json((folder / LOCK_FILE).read_bytes())
        process, host, since = int(note["process"]), str(note["host"]), str(note["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return f"{folder}: another process trains here. Wait for it, or choose another folder."
    where = f"process {process} on {host}, which has held it since {since}"
    return (
        f"{folder}: in use by {printable(where)}. Wait for it, stop it "
        f"(kill {process}; it saves its state), or choose another folder."
    )
