"""What every kind of storage must do. A test class of a storage subclasses these and provides `make_storage`.

`StorageConformance` holds for all of them, `WritableConformance` for those that can be written; the classes of
`store_conformance` for a target store on them.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from common.targets.store.storage import MissingFileError, Storage
from tests.targets.store.made_up_targets import (
    Files,
    all_files,
)

MakeStorage = Callable[[Files], Storage]


class StorageConformance:
    """Reading: holds for every storage."""

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Makes a storage that holds some files."""
        raise NotImplementedError("the class of tests of a storage provides this")

    def test_reads_what_it_holds(self, make_storage):
        files = {"manifest.json": b"{}", "sequences/00/000000.v0.zarr.zip": bytes(range(256)), "empty": b""}
        storage = make_storage(files)
        assert {name: storage.read(name) for name in files} == files
        assert isinstance(storage.read("empty"), bytes)

    def test_a_missing_file_is_told_from_a_failure(self, make_storage):
        storage = make_storage({"a/b": b"1"})
        for name in ("missing", "a/missing", "a", "a/b/c", "no/such/folder/file"):
            with pytest.raises(MissingFileError):
                storage.read(name)

    def test_sizes_by_prefix(self, make_storage):
        files = {"manifest.json": b"12", "s/00/a.v0": b"1", "s/00/a.v1": b"", "s/01/b": b"123", "s.old/c": b"1234"}
        storage = make_storage(files)
        for prefix in (
            "",
            "s",
            "s/",
            "s/0",
            "s/00/",
            "s/00/a.v",
            "s/00/a.v1",
            "manifest.json",
            "nothing",
            "s/00/a.v1/",
        ):
            expected = {name: len(data) for name, data in files.items() if name.startswith(prefix)}
            listed = list(storage.sizes(prefix))
            assert dict(listed) == expected, prefix
            assert len(listed) == len(expected)
            assert sorted(storage.names(prefix)) == sorted(expected), prefix

    def test_an_empty_storage_lists_nothing(self, make_storage):
        storage = make_storage({})
        assert list(storage.sizes()) == []
        assert list(storage.sizes("a/b")) == []

    def test_names_with_dots_and_dashes(self, make_storage):
        names = [".hidden", "a..b", "a.b/c.d.e", "semantic-kitti_2/08/000123.v10.zarr.zip", "v1.0/x", "a.zip/inside"]
        storage = make_storage({name: name.encode() for name in names})
        assert sorted(name for name, _ in storage.sizes()) == sorted(names)
        assert [storage.read(name) for name in names] == [name.encode() for name in names]

    def test_a_large_file(self, make_storage):
        data = np.random.default_rng(0).bytes(12_000_001)
        storage = make_storage({"large": data})
        assert storage.read("large") == data
        assert dict(storage.sizes()) == {"large": len(data)}

    def test_many_files_are_listed_once_each(self, make_storage):
        files = {f"sequences/{row % 3:02d}/{row:06d}.v0": b"x" * (row % 5) for row in range(1203)}
        storage = make_storage(files)
        assert sorted(storage.sizes("sequences/")) == sorted((name, len(data)) for name, data in files.items())
        assert sorted(storage.names("sequences/")) == sorted(files)

    def test_threads_may_read_together(self, make_storage):
        files = {f"f/{row}": np.random.default_rng(row).bytes(20_000) for row in range(8)}
        storage = make_storage(files)
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda row: storage.read(f"f/{row % 8}"), range(80)))
        assert all(data == files[f"f/{row % 8}"] for row, data in enumerate(read))

    def test_location(self, make_storage):
        storage = make_storage({})
        assert isinstance(storage.location, str)
        assert storage.location
        assert storage.drop_local_copy("missing") in (True, False)


class WritableConformance(StorageConformance):
    """Writing, creating once and deleting."""

    def test_write_replaces(self, make_storage):
        storage = make_storage({})
        for data in (b"first", b"", b"a longer third"):
            storage.write("a/b/c", data)
            assert storage.read("a/b/c") == data
            assert dict(storage.sizes()) == {"a/b/c": len(data)}

    def test_what_is_written_is_a_copy(self, make_storage):
        storage, data = make_storage({}), bytearray(b"before")
        storage.write("a", bytes(data))
        data[:] = b"after!"
        assert storage.read("a") == b"before"

    def test_create_only_once(self, make_storage):
        storage = make_storage({"there": b"old"})
        assert storage.create("new/file", b"1")
        assert not storage.create("new/file", b"2")
        assert not storage.create("there", b"3")
        assert all_files(storage) == {"new/file": b"1", "there": b"old"}
        storage.delete("new/file")
        assert storage.create("new/file", b"4")
        assert storage.read("new/file") == b"4"

    def test_of_many_that_create_one_wins(self, make_storage):
        storage, barrier = make_storage({}), threading.Barrier(8)

        def create(row: int) -> bool:
            barrier.wait()
            return storage.create("manifest", f"writer {row}".encode() * 1000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert won.count(True) == 1
        assert storage.read("manifest") == f"writer {won.index(True)}".encode() * 1000
        assert [name for name, _ in storage.sizes()] == ["manifest"]

    def test_concurrent_writers_of_one_file_never_mix(self, make_storage):
        storage, contents = make_storage({}), [bytes([row]) * 200_000 for row in range(6)]
        storage.write("shared", contents[0])
        stop, seen = threading.Event(), set()

        def watch() -> None:
            while not stop.is_set():
                seen.add(storage.read("shared"))

        with ThreadPoolExecutor(5) as pool:
            watching = pool.submit(watch)
            list(pool.map(lambda data: storage.write("shared", data), contents * 3))
            stop.set()
            watching.result()
        assert seen <= set(contents)
        assert storage.read("shared") in contents

    def test_listing_while_others_write_and_delete(self, make_storage):
        storage = make_storage({f"kept/{row}": b"kept" for row in range(20)})
        stop = threading.Event()

        def churn(writer: int) -> None:
            row = 0
            while not stop.is_set():
                storage.write(f"kept/new.{writer}.{row % 3}", b"x")
                storage.delete(f"kept/new.{writer}.{(row + 1) % 3}")
                row += 1

        with ThreadPoolExecutor(3) as pool:
            writers = [pool.submit(churn, writer) for writer in range(3)]
            listings = [dict(storage.sizes("kept/")) for _ in range(30)]
            stop.set()
            for writer in writers:
                writer.result()
        for listing in listings:
            assert all(listing.get(f"kept/{row}") == 4 for row in range(20))
            assert all(re.fullmatch(r"kept/(\d+|new\.\d\.\d)", name) for name in listing)

    def test_delete(self, make_storage):
        storage = make_storage({"a/b": b"1", "a/c": b"2"})
        storage.delete("a/b")
        storage.delete("a/b")
        storage.delete("never/there")
        storage.delete("a/c/deeper")
        assert all_files(storage) == {"a/c": b"2"}
        with pytest.raises(MissingFileError):
            storage.read("a/b")
