"""Many writers, and writers that are stopped: whatever happens, the store is the one of an undisturbed dump."""

import errno
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.base import files
from common.base.errors import SettingsError
from common.base.shards import Shard
from common.targets.store import TargetStore
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import fail, finish, start, succeed
from tests.shared.small_stores import dump_words, half_written, scan_files, signal_after, stage_one, start_dump

OPTIONS = ("splits=[train, val]", "profile=train")


@pytest.fixture(scope="module")
def street_scans(tmp_path_factory) -> Path:
    """Enough scans for a dump to be interrupted."""
    root = tmp_path_factory.mktemp("shards") / "dataset"
    write_dataset(root, {"00": 13, "08": 2}, points=600)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, street_scans, reduced_teacher) -> dict[str, bytes]:
    """Files of a dump by one process that nothing disturbed."""
    cache = tmp_path_factory.mktemp("shards") / "cache"
    succeed(stage_one(*dump_words(street_scans, reduced_teacher, cache, *OPTIONS)))
    return scan_files(cache)


@given(st.integers(0, 200), st.integers(1, 9))
def test_shards_partition_the_work_evenly(items, count):
    work = list(range(items))
    shares = [Shard(index, count).of(work) for index in range(count)]
    assert sorted(item for share in shares for item in share) == work
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(share == sorted(share) for share in shares)


@given(st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))))
def test_shard_prints_as_it_is_written(pair):
    assert Shard.parse(str(Shard(*pair))) == Shard(*pair)


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "1/0", "1/4/2", "a/b"])
def test_impossible_shard_is_refused(text):
    with pytest.raises(SettingsError, match="index from 0"):
        Shard.parse(text)


def test_rank_under_torchrun_decides(monkeypatch):
    assert Shard.of_process(None) == Shard(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.of_process(None) == Shard(2, 4)
    with pytest.raises(SettingsError, match="both split"):
        Shard.of_process("0/2")


def test_independent_shards_make_the_store_of_one_process(tmp_path, street_scans, reduced_teacher, undisturbed):
    words = dump_words(street_scans, reduced_teacher, tmp_path / "cache", *OPTIONS)
    shards = [start_dump(*words, "--shard", f"{index}/2") for index in range(2)]
    outputs = [finish(shard) for shard in shards]
    assert "8 scan-views written" in outputs[0]
    assert "7 scan-views written" in outputs[1]
    assert scan_files(tmp_path / "cache") == undisturbed
    assert not half_written(tmp_path / "cache")


def test_torchrun_makes_the_store_of_one_process(tmp_path, street_scans, reduced_teacher, undisturbed):
    words = dump_words(street_scans, reduced_teacher, tmp_path / "cache", *OPTIONS)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    output = finish(start(*launcher, "-m", "stage1_dump_teacher", *words))
    assert "in shard 0/2" in output
    assert "in shard 1/2" in output
    assert scan_files(tmp_path / "cache") == undisturbed
    assert not half_written(tmp_path / "cache")


def test_killed_shard_is_made_up_for(tmp_path, street_scans, reduced_teacher, undisturbed):
    cache = tmp_path / "cache"
    words = dump_words(street_scans, reduced_teacher, cache, *OPTIONS)
    process = start_dump(*words, "--shard", "0/2")
    signal_after(process, cache, 2, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    written = scan_files(cache)
    assert 2 <= len(written) < 8
    assert written.items() <= undisturbed.items()
    # What a writer that is killed between writing and renaming leaves.
    (cache / "sequences/00/000012.v0.zarr.zip.0123456789ab.partial").write_bytes(b"PK")
    output = succeed(stage_one(*words))
    assert f"{15 - len(written)} scan-views written" in output
    assert f"{len(written)} were there before" in output
    assert scan_files(cache) == undisturbed


def test_stopped_dump_says_so_and_goes_on(tmp_path, street_scans, reduced_teacher, undisturbed):
    cache = tmp_path / "cache"
    words = dump_words(street_scans, reduced_teacher, cache, *OPTIONS)
    process = start_dump(*words)
    output = signal_after(process, cache, 1, signal.SIGINT)
    assert process.returncode == 130, output
    written = scan_files(cache)
    assert f"Stopped with {15 - len(written)} scan-views left; the same command goes on" in output
    assert "Traceback" not in output
    assert "next: " not in output
    assert written.items() <= undisturbed.items()
    assert not half_written(cache)
    assert f"{len(written)} were there before" in succeed(stage_one(*words))
    assert scan_files(cache) == undisturbed


def test_full_disk_leaves_whole_files(tmp_path, street_scans, reduced_teacher, undisturbed, monkeypatch):
    cache = tmp_path / "cache"
    words = dump_words(street_scans, reduced_teacher, cache, *OPTIONS)
    flush, scans_that_fit = files.flush_to_disk, 3

    def flush_until_full(path: Path) -> None:
        if path.suffix == files.TEMPORARY_SUFFIX and len(scan_files(cache)) >= scans_that_fit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "flush_to_disk", flush_until_full)
        message = fail(stage_one(*words))
    assert "No space left on device" in message
    assert "sequences/00/000003.v0" in message
    written = scan_files(cache)
    assert len(written) == scans_that_fit
    assert written.items() <= undisturbed.items()
    assert not half_written(cache)
    assert len(TargetStore.open(cache).finished()) == scans_that_fit
    succeed(stage_one(*words))
    assert scan_files(cache) == undisturbed
