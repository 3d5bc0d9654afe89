"""The user's commands on a store in an object store: dump, resume, info, verify, train from a bounded local copy."""

from pathlib import Path

import pytest

from common.targets.store import TargetStore
from stage1_dump_teacher.__main__ import main as stage_one
from tests.shared.reduced import STREET_GRID, command, dump_words, fail, saved, succeed, train


@pytest.fixture
def remote_cache(s3_url, streets, reduced_teacher) -> str:
    """A store at a URL, dumped with the real command."""
    output = succeed(command(stage_one, *dump_words(streets, reduced_teacher, s3_url, STREET_GRID, "splits=[train]")))
    assert "scan-views written" in output
    return s3_url


def test_a_dump_to_a_url_resumes_and_verifies(remote_cache, streets, reduced_teacher):
    store = TargetStore.open(remote_cache)
    finished = store.finished()
    lost = min(finished)
    store.storage.delete(store.name(*lost))
    words = dump_words(streets, reduced_teacher, remote_cache, STREET_GRID, "splits=[train]")
    assert "1 scan-view written" in succeed(command(stage_one, *words))
    assert TargetStore.open(remote_cache).finished() == finished
    assert str(len(finished)) in succeed(command(stage_one, "info", "--cache", remote_cache))
    succeed(command(stage_one, "verify", "--cache", remote_cache))


def test_a_damaged_object_is_found_by_verify(remote_cache):
    store = TargetStore.open(remote_cache)
    name = store.name(*min(store.finished()))
    data = bytearray(store.storage.read(name))
    data[len(data) // 2] ^= 1
    store.storage.write(name, bytes(data))
    assert "00/000000" in fail(command(stage_one, "verify", "--cache", remote_cache))


def test_training_from_a_url_is_training_from_a_folder(remote_cache, streets, reduced_teacher, runs, tmp_path):
    folder = tmp_path / "folder"
    succeed(command(stage_one, *dump_words(streets, reduced_teacher, folder, STREET_GRID, "splits=[train]")))
    options = ("steps=2", "validate_on=[]", "batch_size=2")
    copies = ("--local-copy", tmp_path / "copies", "--local-copy-gb", "1")
    succeed(train(streets, remote_cache, runs / "remote", *options, options=copies))
    succeed(train(streets, folder, runs / "local", *options))
    remote, local = saved(runs / "remote")["student"], saved(runs / "local")["student"]
    assert all((remote[name] == local[name]).all() for name in local)
    assert list(Path(tmp_path / "copies").rglob("*.zarr.zip"))
