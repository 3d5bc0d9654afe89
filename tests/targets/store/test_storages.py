"""Storages on this machine: the conformance suite on each, and what only a folder can suffer."""

import errno
import os
import shutil
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.base.errors import StoreError
from common.base.files import TEMPORARY_SUFFIX
from common.targets.store import TargetStore
from common.targets.store.archive import ArchiveStorage
from common.targets.store.open_storage import open_storage
from common.targets.store.storage import FolderStorage
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.conformance import StorageConformance, WritableConformance
from tests.targets.store.made_up_targets import SCANS, all_files, fill, identity, store_files, write_archive, write_one
from tests.targets.store.store_conformance import TargetStoreConformance, WritableTargetStoreConformance


def filled(storage, files):
    """The storage with some files in it."""
    for name, data in files.items():
        storage.write(name, data)
    return storage


class OnFolder:
    @pytest.fixture
    def make_storage(self, tmp_path):
        made = iter(range(10_000))
        return lambda files: filled(FolderStorage(tmp_path / f"store{next(made)}"), files)


class OnMemory:
    @pytest.fixture
    def make_storage(self):
        return lambda files: filled(MemoryStorage(), files)


class OnArchive:
    @pytest.fixture
    def make_storage(self, tmp_path):
        made = iter(range(10_000))

        def make(files):
            path = tmp_path / f"store{next(made)}.zip"
            write_archive(filled(MemoryStorage(), files), path)
            return open_storage(path)

        return make


class TestFolder(OnFolder, WritableConformance):
    pass


class TestMemory(OnMemory, WritableConformance):
    pass


class TestArchive(OnArchive, StorageConformance):
    def test_writing_is_refused(self, make_storage):
        storage = make_storage({"a": b"1"})
        for change in (lambda: storage.write("b", b""), lambda: storage.create("b", b""), lambda: storage.delete("a")):
            with pytest.raises(StoreError, match="an archive is read only"):
                change()
        assert all_files(storage) == {"a": b"1"}

    def test_damage_inside_is_noticed(self, make_storage):
        storage = make_storage({"a": b"content of a", "b": b"content of b"})
        data = storage.path.read_bytes()
        storage.path.write_bytes(data.replace(b"content of a", b"contenX of a"))
        with pytest.raises(StoreError, match="a is damaged in the archive"):
            storage.read("a")
        assert storage.read("b") == b"content of b"
        storage.path.write_bytes(data[:20])
        with pytest.raises(StoreError):
            storage.read("b")

    def test_archives_that_cannot_be_used(self, tmp_path):
        with pytest.raises(StoreError, match="not a readable zip archive"):
            ArchiveStorage(tmp_path / "missing.zip")
        (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(StoreError, match="not a readable zip archive"):
            ArchiveStorage(tmp_path / "cut.zip")
        with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("sequences")
            archive.writestr("manifest.json", b"x" * 1000)
        packed = ArchiveStorage(tmp_path / "packed.zip")
        assert [name for name, _ in packed.sizes()] == ["manifest.json"]
        with pytest.raises(StoreError, match=r"manifest\.json is compressed"):
            packed.read("manifest.json")

    def test_equal_stores_make_equal_archives_whole_or_not_at_all(self, tmp_path, monkeypatch):
        files = {"b": b"2", "a": b"1"}
        write_archive(filled(MemoryStorage(), files), tmp_path / "one.zip")
        write_archive(filled(MemoryStorage(), dict(reversed(files.items()))), tmp_path / "two.zip")
        assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
        monkeypatch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StoreError, match="No space"):
            write_archive(filled(MemoryStorage(), {"c": b""}), tmp_path / "one.zip")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]
        assert all_files(ArchiveStorage(tmp_path / "one.zip")) == files


class TestStoreInFolder(OnFolder, WritableTargetStoreConformance):
    pass


class TestStoreInMemory(OnMemory, WritableTargetStoreConformance):
    pass


class TestStoreInArchive(OnArchive, TargetStoreConformance):
    def test_dumping_into_it_is_refused(self, make_storage):
        store = TargetStore.open(make_storage(store_files()))
        with pytest.raises(StoreError, match="an archive is read only"):
            write_one(store, SCANS[0], 0)


def failing(error):
    """A function that raises."""

    def fail(*_arguments, **_keywords):
        raise error

    return fail


def half_written(self, data):
    """`Path.write_bytes` on a disk that fills up."""
    with self.open("wb") as file:
        file.write(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, "No space left on device")


STEPS = {
    "content": (Path, "write_bytes"),
    "flush": (os, "fsync"),
    "rename": (os, "replace"),
    "link": (os, "link"),
    "folder": (os, "mkdir"),
}


def reached_steps(operation, folder_matters):
    """Steps whose failure an operation cannot pass over; that a folder exists already is no failure."""
    steps = {"content", "flush", "rename" if operation == "write" else "link"}
    return steps | {"folder"} if folder_matters else steps


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("existing", [None, b"old"])
@pytest.mark.parametrize("operation", ["write", "create"])
def test_a_write_that_fails_at_any_step_leaves_the_old_or_the_new_whole(
    tmp_path, monkeypatch, step, error, existing, operation
):
    storage = FolderStorage(tmp_path / "store")
    if existing is not None:
        storage.write("s/00/file", existing)
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], failing(error))
        reached = step in reached_steps(operation, existing is None or isinstance(error, KeyboardInterrupt))
        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else StoreError
        with pytest.raises(expected) if reached else nullcontext() as caught:
            getattr(storage, operation)("s/00/file", b"new")
    if reached and expected is StoreError:
        assert error.strerror in caught.value.message
        assert str(tmp_path / "store" / "s/00/file") in caught.value.message
    assert all_files(storage) in (
        [{}, {"s/00/file": b"new"}] if existing is None else [{"s/00/file": existing}, {"s/00/file": b"new"}]
    )
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]
    # The next attempt succeeds.
    storage.write("s/00/file", b"newest")
    assert all_files(storage) == {"s/00/file": b"newest"}


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    store = TargetStore.create_or_resume(tmp_path / "store", identity(), {})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half_written)
        with pytest.raises(StoreError, match=r"No space left on device\). Free some space"):
            write_one(store, SCANS[0], 0)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert store.finished() == set()
    write_one(store, SCANS[0], 0)
    assert store.finished() == {(SCANS[0], 0)}


def test_leftovers_of_killed_writers_are_not_listed(tmp_path):
    store = fill(FolderStorage(tmp_path))
    finished = store.finished()
    path = tmp_path / store.name(SCANS[0], 0)
    shutil.copy(path, path.with_name(f"{path.name}.0123456789ab{TEMPORARY_SUFFIX}"))
    assert store.finished() == finished
    assert dict(store.storage.sizes()) == {name: len(data) for name, data in all_files(store.storage).items()}


def test_files_that_vanish_during_a_listing_are_passed_over(tmp_path):
    storage = filled(FolderStorage(tmp_path), {f"f{row}": b"1" for row in range(5)})
    listing = storage.sizes()
    first, _ = next(listing)
    for name in {f"f{row}" for row in range(5)} - {first}:
        storage.delete(name)
    assert list(listing) == []
    assert dict(storage.sizes()) == {first: 1}


def test_links_that_lead_nowhere_are_no_targets(tmp_path):
    store = fill(FolderStorage(tmp_path))
    path, expected = tmp_path / store.name(SCANS[0], 0), store.finished()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.finished() == expected
    (tmp_path / "elsewhere").unlink()
    assert store.finished() == set(store.sizes()) == expected - {(SCANS[0], 0)}


class WatchedEntry:
    """An entry of a folder that counts how often it is looked at."""

    looks = 0

    def __init__(self, entry):
        self.entry = entry

    def __getattr__(self, name):
        WatchedEntry.looks += name == "stat"
        return getattr(self.entry, name)


class WatchedFolder(list):
    """Entries of a folder, as `os.scandir` gives them."""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass


def test_an_index_needs_no_look_at_each_file(tmp_path, monkeypatch):
    store, entries = fill(FolderStorage(tmp_path)), os.scandir

    monkeypatch.setattr(os, "scandir", lambda folder: WatchedFolder(map(WatchedEntry, entries(folder))))
    assert len(store.finished()) == 6
    assert WatchedEntry.looks == 0
    assert len(store.sizes()) == WatchedEntry.looks == 6


def test_file_systems_without_hard_links_still_create_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", failing(OSError(errno.EPERM, "Operation not permitted")))
    storage = FolderStorage(tmp_path)
    assert storage.create("manifest", b"1")
    assert not storage.create("manifest", b"2")
    assert all_files(storage) == {"manifest": b"1"}


def test_unreadable_and_occupied_places_are_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for change in (lambda s: s.write("a", b""), lambda s: s.create("a", b"")):
        with pytest.raises(StoreError, match="file/a: cannot be written"):
            change(FolderStorage(tmp_path / "file"))
    (tmp_path / "store" / "a").mkdir(parents=True)
    with pytest.raises(StoreError, match="store/a: cannot be deleted"):
        FolderStorage(tmp_path / "store").delete("a")


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
    assert FolderStorage(tmp_path / "not" / "yet").free_bytes() == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.5
    )


def test_open_storage_chooses_by_name(tmp_path):
    assert isinstance(open_storage(tmp_path), FolderStorage)
    assert isinstance(open_storage(str(tmp_path)), FolderStorage)
    write_archive(MemoryStorage(), tmp_path / "a.zip")
    assert isinstance(open_storage(tmp_path / "a.zip"), ArchiveStorage)
