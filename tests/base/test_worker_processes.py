"""Processes that work for threads: same results and errors, arrays in shared memory, none left behind by a kill."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common.base.errors import DataError, PolarDistillError
from common.base.worker_processes import LEAST_BLOCK, SHARED_MEMORY, WorkerError, WorkerProcesses
from tests.golden.golden_files import REPOSITORY

ARRAYS = {
    "rows": np.arange(35, dtype=np.float32).reshape(5, 7),
    "bytes": np.arange(3, dtype=np.int8),
    "nothing": np.empty((0, 4), np.float16),
    "turned": np.arange(12, dtype=np.uint32).reshape(3, 4).T,
}

LARGE = {"large": np.arange(LEAST_BLOCK)}

PARENT = """
import time
import numpy as np
from common.base.worker_processes import WorkerProcesses
from tests.base.test_worker_processes import pid_of, sums
if __name__ == "__main__":
    with WorkerProcesses(1, None) as workers:
        workers.call_with(sums, {"a": np.zeros(9)}, 0)
        print(workers.call(pid_of), flush=True)
        time.sleep(60)
"""


ENDS_BY_AN_ERROR = """
from common.base.worker_processes import WorkerProcesses
from tests.base.test_worker_processes import keep_a_lock
if __name__ == "__main__":
    with WorkerProcesses(1, None) as workers:
        workers.call(keep_a_lock)
        raise SystemExit("the disk is full")
"""


SIGNALLED = """
import os, signal, threading, time
from common.base.worker_processes import WorkerProcesses
from tests.base.test_worker_processes import scaled

def signal_all():
    while going:
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGTERM)
        time.sleep(0.02)

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    going = True
    threading.Thread(target=signal_all, daemon=True).start()
    with WorkerProcesses(2, 3) as workers:
        time.sleep(0.2)
        print(workers.call(scaled, 5))
    going = False
"""


def pid_of(given: object) -> int:
    return os.getpid()


def scaled(factor: int, number: int) -> int:
    return factor * number


def sums(factor: int, arrays: dict[str, np.ndarray], more: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {name: (values.dtype.str, values.shape, int(values.sum()) + more) for name, values in arrays.items()}


def repeated(factor: int, arrays: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray]]:
    return factor, {name: np.concatenate([values] * factor) for name, values in arrays.items()}


def refuse(given: object, message: str) -> None:
    raise DataError(message)


class OwnDataError(DataError):
    def __init__(self, scan: str, problem: str) -> None:
        super().__init__(f"scan {scan}: {problem}")


class OwnError(Exception):
    def __init__(self, scan: str, problem: str) -> None:
        super().__init__(f"scan {scan}: {problem}")


def refuse_in_own_words(given: object, kind: type[Exception]) -> None:
    raise kind("00/000003", "is odd")


def own_words(given: object) -> DataError:
    return OwnDataError("00/000003", "is odd")


kept: list[object] = []


def keep_a_lock(given: object) -> None:
    """As numcodecs does."""
    kept.append(multiprocessing.Lock())


@pytest.fixture(scope="module")
def workers():
    with WorkerProcesses(2, 3) as started:
        yield started


def test_calls_of_many_threads_are_answered_elsewhere(workers):
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda number: workers.call(scaled, number), range(20)))
    assert answers == [3 * number for number in range(20)]
    assert workers.call(pid_of) != os.getpid()


def test_arrays_travel_in_shared_memory(workers):
    found = workers.call_with(sums, ARRAYS, 5)
    assert found == {name: (one.dtype.str, one.shape, int(one.sum()) + 5) for name, one in ARRAYS.items()}
    for arrays in (ARRAYS, LARGE, LARGE, ARRAYS):
        factor, found = workers.call_for(repeated, arrays)
        assert factor == 3
        assert found.keys() == arrays.keys()
        for name, values in arrays.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], np.concatenate([values] * 3))


def test_calls_at_once_do_not_share_a_block(workers):
    def call(number: int) -> bool:
        values = np.full(50_000, number)
        return workers.call_with(sums, {"a": values}, 0)["a"][2] == values.sum()

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(call, range(60)))


def test_memory_that_is_not_there_is_refused(monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with WorkerProcesses(1, None) as workers:
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(PolarDistillError, match="no room for 13 MB to hand scans"):
            workers.call_with(sums, LARGE, 0)
    with pytest.raises(WorkerError, match=r"could not be started: .*no room for 2 MB"):
        WorkerProcesses(1, None)


def test_errors_come_back_as_they_are(workers):
    with pytest.raises(DataError, match="scan 00/000003: is empty"):
        workers.call(refuse, "scan 00/000003: is empty")


def test_errors_of_ones_own_come_back_whatever_they_are_made_from(workers):
    with pytest.raises(OwnDataError, match=r"^scan 00/000003: is odd$"):
        workers.call(refuse_in_own_words, OwnDataError)
    assert workers.call(own_words).message == "scan 00/000003: is odd"
    with pytest.raises(RuntimeError, match="OwnError: scan 00/000003: is odd"):
        workers.call(refuse_in_own_words, OwnError)
    assert workers.call(scaled, 1) == 3


def test_signals_to_all_are_left_to_the_process_that_asks(tmp_path):
    """From the first moment on, while they are starting too."""
    script = tmp_path / "parent.py"
    script.write_text(SIGNALLED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, start_new_session=True, timeout=60
    )
    assert (done.stdout, done.stderr, done.returncode) == ("15\n", "", 0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_was_killed_is_told_and_nothing_hangs(which):
    with WorkerProcesses(2, None) as workers:
        os.kill(sorted(workers._pool._processes)[which], signal.SIGKILL)
        with pytest.raises(WorkerError, match="was ended from outside"):
            call_until_it_is_noticed(workers)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_hangs_where_nobody_asks_any_more(monkeypatch, which):
    """One of two that wait holds a lock, with which it may be killed."""
    monkeypatch.setattr("common.base.worker_processes.SECONDS_TO_END", 0.5)
    workers = WorkerProcesses(2, None)
    time.sleep(0.5)
    os.kill(sorted(workers._pool._processes)[which], signal.SIGKILL)
    leaving = threading.Thread(target=workers.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(20)
    assert not leaving.is_alive()


def test_an_error_is_the_last_word(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ENDS_BY_AN_ERROR)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stderr == "the disk is full\n"


def test_where_locks_cannot_be_made_none_are_started(monkeypatch):
    def refused(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("common.base.worker_processes.ProcessPoolExecutor", refused)
    with pytest.raises(WorkerError, match="Permission denied"):
        WorkerProcesses(1, None)


def test_what_cannot_travel_is_named_at_once():
    with pytest.raises(WorkerError, match="could not be started: cannot pickle"):
        WorkerProcesses(1, threading.Lock())


@pytest.mark.parametrize("how", ["killed", "all killed", "terminal closed"])
def test_processes_end_with_the_one_that_started_them_and_leave_no_memory(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        words = parent.stdout.readline().split()
        worker = int(words[0])
        os.kill(worker, 0)
        assert blocks_of(parent.pid)
        if how == "killed":
            parent.kill()
        else:
            os.killpg(parent.pid, signal.SIGKILL if how == "all killed" else signal.SIGHUP)
    for _ in range(100):
        if not is_running(worker):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {worker} outlived the one that started it")


def blocks_of(process: int) -> list[str]:
    """What a process has mapped of shared memory beside semaphores; all of it must be without a name."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    blocks = [line for line in lines if f"{SHARED_MEMORY}/" in line and "/sem." not in line]
    assert all(line.endswith(" (deleted)") for line in blocks), blocks
    return blocks


def call_until_it_is_noticed(workers: WorkerProcesses) -> None:
    for _ in range(100):
        workers.call(pid_of)
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
