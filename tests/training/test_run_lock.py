"""Of two processes that would write into one run, the second is refused with the name of the first."""

import os
import signal
import socket
from pathlib import Path

import pytest

from common.base.errors import TrainingError
from common.training.run_lock import LOCK_FILE, locked
from tests.dump.test_train_teacher import train_teacher
from tests.shared.reduced import fail, read_until, start, train

HOLD = "import sys, time; from pathlib import Path; from common.training.run_lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder `run`."""
    process = start("-c", HOLD, tmp_path / "run")
    read_until(process, "held")
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_the_first_is(holder, tmp_path):
    with pytest.raises(TrainingError) as refused, locked(tmp_path / "run"):
        pass
    message = str(refused.value)
    assert f"{tmp_path / 'run'}: in use by process {holder.pid} on {socket.gethostname()}" in message
    assert "since 2" in message
    assert f"kill {holder.pid}" in message


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK_FILE).read_text()
    assert (tmp_path / "run" / LOCK_FILE).read_text() == ""


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"process": "\\u001b[2J", "host": "", "since": ""}',
        '{"process": 1e999, "host": "", "since": ""}',
        '{"process": Infinity, "host": "", "since": ""}',
    ],
)
def test_a_note_that_cannot_be_read_is_left_out(holder, tmp_path, note):
    (tmp_path / "run" / LOCK_FILE).write_text(note)
    with pytest.raises(TrainingError, match="another process trains here"), locked(tmp_path / "run"):
        pass


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match="run: a run cannot be written here"), locked(tmp_path / "run"):
        pass


def test_students_and_teachers_share_the_lock(holder, tmp_path, streets, street_cache):
    run = tmp_path / "run"
    for result in (train(streets, street_cache, run), train_teacher(streets, run)):
        assert f"in use by process {holder.pid}" in fail(result)
    assert only_the_lock_is_in(run)


def only_the_lock_is_in(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == [LOCK_FILE]
