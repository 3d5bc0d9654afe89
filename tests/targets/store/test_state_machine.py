"""A target store under any sequence of writes, crashes, resumes, damage, reads and deletions, against a dictionary."""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.base.errors import StoreError
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.storage import FolderStorage, Storage
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.made_up_targets import SCANS, VIEWS, identity, numbers, points_of, targets_of, write_one

scans = st.sampled_from(SCANS)
views = st.integers(0, VIEWS.count - 1)
versions = st.integers(0, 1)

CRASH_POINTS = ["before", "content", "flush", "rename", "folder flush"]


class Killed(BaseException):
    """Ends a write where it stands; unlike a real kill it lets `finally` run, so leftovers are made by hand."""


class StoreMachine(RuleBasedStateMachine):
    """The model: version of the targets by scan and view, and which of the files are damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.new_storage()
        self.store = TargetStore.create_or_resume(self.storage, identity(), {})
        self.written: dict[tuple[ScanId, int], int] = {}
        self.damaged: set[tuple[ScanId, int]] = set()

    def new_storage(self) -> Storage:
        """An empty storage."""
        raise NotImplementedError

    def crash(self, scan: ScanId, view: int, version: int, point: str) -> bool:
        """Be killed at some point of writing; whether the new file is in place."""
        raise NotImplementedError

    @rule(scan=scans, view=views, version=versions)
    def write(self, scan, view, version):
        write_one(self.store, scan, view, version)
        self.written[(scan, view)] = version
        self.damaged.discard((scan, view))

    @rule(scan=scans, view=views, version=versions, point=st.sampled_from(CRASH_POINTS))
    def crash_during_write(self, scan, view, version, point):
        if self.crash(scan, view, version, point):
            self.written[(scan, view)] = version
            self.damaged.discard((scan, view))

    @rule()
    def resume(self):
        self.store = TargetStore.create_or_resume(self.storage, identity(), {"by": "another process"})

    @rule()
    def another_teacher_is_refused(self):
        with pytest.raises(StoreError, match="teacher_hash"):
            TargetStore.create_or_resume(self.storage, identity(teacher_hash="b" * 64), {})

    @precondition(lambda self: self.written)
    @rule(data=st.data(), place=st.floats(0.0, 1.0, exclude_max=True), cut=st.booleans())
    def corrupt(self, data, place, cut):
        key = data.draw(st.sampled_from(sorted(self.written)))
        name = self.store.name(*key)
        content = bytearray(self.storage.read(name))
        if cut:
            content = content[: int(place * len(content))]
        elif content:
            content[int(place * len(content))] ^= 0xFF
        self.storage.write(name, bytes(content))
        self.damaged.add(key)

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def delete(self, data):
        key = data.draw(st.sampled_from(sorted(self.written)))
        self.storage.delete(self.store.name(*key))
        del self.written[key]
        self.damaged.discard(key)

    @rule(scan=scans, view=views)
    def read(self, scan, view):
        version = self.written.get((scan, view))
        if version is None:
            with pytest.raises(StoreError, match=f"no targets of scan {scan}, view {view}"):
                self.store.read(scan, view, None)
            return
        expected = numbers(targets_of(scan, view, version))
        if (scan, view) in self.damaged:
            # Damage to bytes that are not used, such as times in zip headers, does not stop a reader.
            with suppress(StoreError):
                assert numbers(self.store.read(scan, view, points_of(scan), voxel_features=True)[0]) == expected
            return
        assert numbers(self.store.read(scan, view, points_of(scan), voxel_features=True)[0]) == expected

    @rule(scan=scans, view=views)
    def verify(self, scan, view):
        if (scan, view) in self.written and (scan, view) not in self.damaged:
            assert self.store.verify(scan, view)["logits"] > 0
        elif (scan, view) not in self.written:
            with pytest.raises(StoreError):
                self.store.verify(scan, view)

    @invariant()
    def the_listing_is_the_model(self):
        assert self.store.finished() == set(self.written)


class FolderMachine(StoreMachine):
    """In a folder: crashes at every system call of a write, with the temporary file left behind."""

    def new_storage(self) -> Storage:
        self.folder = Path(tempfile.mkdtemp(prefix="store_machine_"))
        return FolderStorage(self.folder / "store")

    def crash(self, scan: ScanId, view: int, version: int, point: str) -> bool:
        flushes = iter([point == "flush", point == "folder flush"])

        def fsync(_descriptor: int) -> None:
            if next(flushes):
                raise Killed

        def half_written(path: Path, data: bytes) -> None:
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
            raise Killed

        def killed(*_arguments: object, **_keywords: object) -> None:
            raise Killed

        if point == "before":
            return False
        # A killed process removes nothing.
        patches = [patch.object(os, "fsync", fsync), patch.object(Path, "unlink", lambda *_, **__: None)]
        if point == "content":
            patches.append(patch.object(Path, "write_bytes", half_written))
        if point == "rename":
            patches.append(patch.object(os, "replace", killed))
        for one in patches:
            one.start()
        try:
            with pytest.raises(Killed):
                write_one(self.store, scan, view, version)
        finally:
            for one in patches:
                one.stop()
        return point == "folder flush"

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


class MemoryMachine(StoreMachine):
    """In memory, where a write fails before it has any effect."""

    def new_storage(self) -> Storage:
        return MemoryStorage()

    def crash(self, scan: ScanId, view: int, version: int, point: str) -> bool:
        with (
            patch.object(MemoryStorage, "write", side_effect=OSError(errno.ENOSPC, "No space left on device")),
            pytest.raises(OSError, match="No space"),
        ):
            write_one(self.store, scan, view, version)
        return False


TestFolderMachine = FolderMachine.TestCase
TestFolderMachine.settings = run_settings(max_examples=25, stateful_step_count=25)
TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = run_settings(max_examples=25, stateful_step_count=25)
