"""Local copies of remote stores: the conformance suite over memory, the bound, and copies that cannot be trusted."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.local_copy import MARKER, LocalCopy
from common.targets.store.storage import MissingFileError
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.conformance import WritableConformance
from tests.targets.store.made_up_targets import (
    REPOSITORY,
    SCANS,
    numbers,
    points_of,
    store_files,
    targets_of,
    write_one,
)
from tests.targets.store.store_conformance import WritableTargetStoreConformance, regions

LARGE = 10**9


class CountingStorage(MemoryStorage):
    """Memory that counts what is read from it."""

    def __init__(self, files=None):
        super().__init__()
        self.reads = []
        for name, data in (files or {}).items():
            self.write(name, data)

    def read(self, name):
        self.reads.append(name)
        return super().read(name)


class OnLocalCopy:
    @pytest.fixture
    def make_storage(self, tmp_path):
        made = iter(range(10_000))
        return lambda files: LocalCopy(CountingStorage(files), tmp_path / f"copy{next(made)}", LARGE)


class TestLocalCopy(OnLocalCopy, WritableConformance):
    pass


class TestStoreInLocalCopy(OnLocalCopy, WritableTargetStoreConformance):
    pass


def held(folder: Path) -> dict[str, int]:
    """Files in a folder of copies and their sizes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {path.name: path.stat().st_size for path in files}


def test_a_file_travels_once(tmp_path):
    remote = CountingStorage({"a": b"1"})
    for _ in range(2):
        copy = LocalCopy(remote, tmp_path, LARGE)
        assert [copy.read("a") for _ in range(3)] == [b"1"] * 3
    assert remote.reads == ["a"]


def test_a_copy_of_somebody_else_is_read_though_its_time_cannot_be_set(tmp_path, monkeypatch):
    remote = CountingStorage({"a": b"1"})
    copy = LocalCopy(remote, tmp_path, LARGE)
    copy.read("a")

    def refused(_path):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert copy.read("a") == b"1"
    assert remote.reads == ["a"]


def test_missing_files_are_not_remembered(tmp_path):
    remote = CountingStorage()
    copy = LocalCopy(remote, tmp_path, LARGE)
    with pytest.raises(MissingFileError):
        copy.read("a")
    remote.write("a", b"now")
    assert copy.read("a") == b"now"


def test_writes_go_through_and_replace_the_copy(tmp_path):
    remote = CountingStorage({"a": b"old"})
    copy = LocalCopy(remote, tmp_path, LARGE)
    assert copy.read("a") == b"old"
    copy.write("a", b"new")
    assert (remote.read("a"), copy.read("a")) == (b"new", b"new")
    copy.delete("a")
    with pytest.raises(MissingFileError):
        copy.read("a")


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path):
    files = {f"f{row}": bytes([row]) * 100 for row in range(30)}
    copy = LocalCopy(CountingStorage(files), tmp_path, 1000)
    for row in range(30):
        assert copy.read(f"f{row}") == files[f"f{row}"]
        os.utime(tmp_path / "copies" / f"f{row}", ns=(row, row))
        assert copy.read("f0") == files["f0"]
        os.utime(tmp_path / "copies" / "f0", ns=(row, row + 1))
        assert sum(held(tmp_path).values()) <= 1000
    kept = held(tmp_path)
    assert {"f0", "f29", "f28", "f27"} <= kept.keys()
    assert len(kept) >= 8
    assert "f1" not in kept


def test_reading_counts_as_use(tmp_path):
    copy = LocalCopy(CountingStorage({"a": b"1"}), tmp_path, LARGE)
    copy.read("a")
    os.utime(tmp_path / "copies" / "a", ns=(5, 5))
    copy.read("a")
    assert (tmp_path / "copies" / "a").stat().st_mtime_ns > 5


def test_files_larger_than_the_bound_are_read_but_not_kept(tmp_path):
    copy = LocalCopy(CountingStorage({"large": bytes(2000), "small": bytes(10)}), tmp_path, 1000)
    copy.read("small")
    assert copy.read("large") == bytes(2000)
    assert held(tmp_path) == {"small": 10}


def test_threads_stay_within_the_bound(tmp_path):
    files = {f"f{row}": bytes([row]) * 1000 for row in range(60)}
    copy = LocalCopy(CountingStorage(files), tmp_path, 20_000)

    with ThreadPoolExecutor(6) as pool:
        read = pool.map(lambda row: copy.read(f"f{row % 60}") == files[f"f{row % 60}"], range(300))
        assert all(read)
    assert 10_000 <= sum(held(tmp_path).values()) <= 20_000


def test_processes_share_a_folder(tmp_path):
    program = """
import sys
from pathlib import Path
from common.targets.store.local_copy import LocalCopy
from tests.shared.memory_storage import MemoryStorage
remote = MemoryStorage()
for row in range(40):
    remote.write(f"s/f{row}", bytes([row]) * 1000)
copy = LocalCopy(remote, Path(sys.argv[1]), 20_000)
for turn in range(5):
    for row in range(40):
        assert copy.read(f"s/f{(row * 7 + turn) % 40}") == bytes([(row * 7 + turn) % 40]) * 1000
"""
    command = [sys.executable, "-c", program, str(tmp_path / "shared")]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    # Each process adds at most a twentieth of the bound between looks.
    assert sum(held(tmp_path / "shared").values()) <= 20_000 + 3 * 1000
    assert not [name for name in held(tmp_path / "shared") if name.endswith(".partial")]


def test_stores_of_other_names_share_the_bound_but_no_files(tmp_path):
    one = LocalCopy(CountingStorage({"a": b"1" * 600}), tmp_path, 1000, "one")
    other = LocalCopy(CountingStorage({"a": b"2" * 600}), tmp_path, 1000, "other")
    assert one.read("a") == b"1" * 600
    assert other.read("a") == b"2" * 600
    assert sum(held(tmp_path).values()) <= 1000
    assert (tmp_path / "other" / "a").exists()
    assert not (tmp_path / "one" / "a").exists()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(StoreError, match="holds other files"):
        LocalCopy(CountingStorage(), tmp_path, LARGE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="cannot be used for copies"):
        LocalCopy(CountingStorage(), tmp_path / "thesis.tex" / "below", LARGE)


def test_a_full_local_disk_only_warns_once(tmp_path, monkeypatch):
    copy = LocalCopy(CountingStorage({"a": b"1", "b": b"2"}), tmp_path, LARGE)

    def full(_path, _data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="no local copy was made") as warned:
        assert (copy.read("a"), copy.read("b")) == (b"1", b"2")
    assert len(warned) == 1
    assert held(tmp_path) == {}


def flipped(data: bytes) -> bytes:
    """The data with a flipped bit in the chunk of the logits."""
    position = dict(regions(data))["logits/c/0/0"] + 40
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: b"", flipped])
def test_a_damaged_copy_is_fetched_anew_once(tmp_path, damage):
    remote = CountingStorage(store_files())
    store = TargetStore.open(LocalCopy(remote, tmp_path, LARGE))
    name, scan = store.name(SCANS[0], 0), SCANS[0]
    expected = numbers(targets_of(scan, 0))
    assert numbers(store.read(scan, 0, points_of(scan), voxel_features=True)[0]) == expected
    path = tmp_path / "copies" / name
    path.write_bytes(damage(path.read_bytes()))
    assert numbers(store.read(scan, 0, points_of(scan), voxel_features=True)[0]) == expected
    assert remote.reads.count(name) == 2
    assert path.read_bytes() == store_files()[name]


def test_a_file_damaged_at_its_source_is_reported(tmp_path):
    files = dict(store_files())
    name = f"sequences/{SCANS[0].sequence}/{SCANS[0].frame}.v0.zarr.zip"
    files[name] = files[name][:-50]
    remote = CountingStorage(files)
    store = TargetStore.open(LocalCopy(remote, tmp_path, LARGE))
    for attempt in (1, 2):
        with pytest.raises(StoreError, match="is damaged"):
            store.read(SCANS[0], 0, None)
        assert remote.reads.count(name) <= 2 * attempt


def test_an_outdated_copy_is_fetched_anew(tmp_path):
    # A scan was repaired at the source after its targets had been copied.
    remote = CountingStorage(store_files())
    store = TargetStore.open(LocalCopy(remote, tmp_path, LARGE))
    store.read(SCANS[0], 0, points_of(SCANS[0]))
    restored = points_of(SCANS[0]) + 1
    TargetStore.open(remote).write(SCANS[0], 0, store.read(SCANS[0], 0, None)[1], targets_of(SCANS[0], 0, 1), restored)
    read, _ = store.read(SCANS[0], 0, restored, voxel_features=True)
    assert numbers(read) == numbers(targets_of(SCANS[0], 0, 1))
    with pytest.raises(StoreError, match="has changed"):
        store.read(SCANS[0], 0, points_of(SCANS[0]))
    write_one(TargetStore.open(remote), SCANS[0], 0)
    assert numbers(store.read(SCANS[0], 0, points_of(SCANS[0]), voxel_features=True)[0]) == numbers(
        targets_of(SCANS[0], 0)
    )
