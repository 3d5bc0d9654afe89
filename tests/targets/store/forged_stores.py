"""Stores in memory with a file that somebody forged, and what is said about it."""

import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.maintenance import inspect_bytes
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.made_up_targets import SCANS, store_files

SCAN = SCANS[0]
NAME = f"sequences/{SCAN.sequence}/{SCAN.frame}.v0.zarr.zip"
PLAIN = store_files("float32", "none")


def store_with(files: dict[str, bytes]) -> TargetStore:
    """A store in memory."""
    storage = MemoryStorage()
    for name, data in files.items():
        storage.write(name, data)
    return TargetStore.open(storage)


def refused(data: bytes, files: dict[str, bytes] = PLAIN) -> str:
    """What `verify` says about a scan file that nobody may read."""
    store = store_with(files | {NAME: data})
    problem = inspect_bytes(store, SCAN, 0, data)
    assert problem is not None
    assert problem.file_is_wrong
    with pytest.raises(StoreError, match=NAME):
        store.verify(SCAN, 0)
    return f"{problem.array} {problem.text}"
