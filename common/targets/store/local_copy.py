"""A bounded copy on a local disk of what was read from a remote store."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.base.errors import StoreError
from common.base.files import temporary_beside
from common.targets.store.remote import RemoteStorage
from common.targets.store.storage import Storage
from common.targets.store.store import TargetStore

MARKER = "local-copies-of-target-stores"
"""A file that marks a folder whose files may be deleted to make room."""

SHARE_BETWEEN_LOOKS = 1 / 20
"""Share of the bound that a process adds before it looks again at what other processes have added."""

SHARE_AFTER_CLEARING = 9 / 10
"""Share of the bound that may stay when the least recently used files are removed."""


@dataclass(frozen=True)
class CopySettings:
    """Where copies of remote stores go.

    Attributes:
        folder: of the copies of all stores.
        gigabytes: bound on its size (10^9 bytes); 0 for no copies.
    """

    folder: Path = Path("cache/.local")
    gigabytes: float = 50.0


class CopiedFile(NamedTuple):
    """One file in the folder: when it was last used (nanoseconds), its size in bytes and its path."""

    used: int
    size: int
    path: str


class LocalCopy(Storage):
    """A storage that keeps what was read from another one; writes go to the other one.

    The folder never holds more than `max_bytes`; what was used longest ago goes first. Several processes and several
    stores may share the folder: each process then adds at most a twentieth of the bound before it counts what the
    others have added. Copies are not trusted: their checksums are verified at each reading like any file's, and a
    damaged one is fetched anew (`drop_local_copy`), which is why they need not be flushed to disk.

    Attributes:
        remote: the other storage.
        folder: of the copies.
        max_bytes: bound on the folder's size; larger files are not copied.
        store: name of the part of the folder that this storage uses.
    """

    def __init__(self, remote: Storage, folder: Path, max_bytes: int, store: str = "copies") -> None:
        """Prepare the folder.

        Raises:
            StoreError: the folder holds other files, which must not be deleted to make room, or cannot be made.
        """
        self.remote, self.location = remote, remote.location
        self.folder, self.max_bytes, self.store = folder, max_bytes, store
        self._lock = threading.Lock()
        self._room = 0
        self._warned = False
        self._claim()

    def read(self, name: str) -> bytes:
        """The copy, or the file itself, which is then copied. Raises MissingFileError."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            data = self.remote.read(name)
            self._keep(path, data)
        else:
            # Access times are often switched off; the modification time says when a copy was last used. Of a file of
            # somebody else's it stays.
            with suppress(OSError):
                os.utime(path)
        return data

    def write(self, name: str, data: bytes) -> None:
        self.remote.write(name, data)
        self._drop(name)

    def create(self, name: str, data: bytes) -> bool:
        return self.remote.create(name, data)

    def delete(self, name: str) -> None:
        self.remote.delete(name)
        self._drop(name)

    def drop_local_copy(self, name: str) -> bool:
        return self._drop(name) or self.remote.drop_local_copy(name)

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return self.remote.sizes(prefix)

    def _path(self, name: str) -> Path:
        return self.folder / self.store / name

    def _claim(self) -> None:
        marker = self.folder / MARKER
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                if any(entry.name != MARKER for entry in os.scandir(self.folder)):
                    raise StoreError(
                        f"{self.folder}: holds other files; copies of a remote store need a folder of their own, in "
                        "which files are deleted to make room. Name another one with --local-copy."
                    )
                marker.touch()
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot be used for copies of a remote store ({error.strerror}). Name another folder "
                "with --local-copy."
            ) from error

    def _drop(self, name: str) -> bool:
        try:
            self._path(name).unlink()
        except OSError:
            return False
        return True

    def _keep(self, path: Path, data: bytes) -> None:
        temporary = temporary_beside(path)
        try:
            # One thread at a time, else room could be counted that a file in the making is about to take.
            with self._lock:
                if not self._make_room(len(data)):
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    temporary.write_bytes(data)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            # Another process has removed it already to make room.
            return
        except OSError as error:
            # Training can go on without the copy, only slower.
            if not self._warned:
                self._warned = True
                warnings.warn(f"{path}: no local copy was made ({error.strerror})", stacklevel=2)

    def _make_room(self, size: int) -> bool:
        """Reserve room for a file, by removing others if need be; whether there is any."""
        if size > self.max_bytes:
            return False
        if size > self._room:
            held = self._clear(size)
            if held + size > self.max_bytes:
                return False
            # At least this file, else what may be added before the next look.
            self._room = max(size, min(self.max_bytes - held, int(self.max_bytes * SHARE_BETWEEN_LOOKS)))
        self._room -= size
        return True

    def _clear(self, size: int) -> int:
        """Bytes in the folder, after removing the least recently used files if there is no room for `size` bytes."""
        files = sorted(copied_files(str(self.folder)))
        held = sum(file.size for file in files)
        if held + size <= self.max_bytes:
            return held
        kept = min(int(self.max_bytes * SHARE_AFTER_CLEARING), self.max_bytes - size)
        for file in files:
            if held <= kept:
                break
            try:
                Path(file.path).unlink(missing_ok=True)
            except OSError:
                continue
            held -= file.size
        return held


def copied_locally(store: TargetStore, settings: CopySettings) -> TargetStore:
    """The same store with local copies of what is read from it, where it is at a URL; else the store as it is.

    Copies are kept by identity: stores of equal identity hold interchangeable targets, wherever they are, and a store
    that was made anew with other settings at the same URL does not meet the copies of its predecessor.

    Raises:
        StoreError: the folder cannot be used.
    """
    if not isinstance(store.storage, RemoteStorage) or settings.gigabytes <= 0:
        return store
    copy = LocalCopy(store.storage, settings.folder, int(settings.gigabytes * 1e9), store.identity.hash[:16])
    return TargetStore(copy, store.identity, store.signed)


def copied_files(folder: str) -> Iterator[CopiedFile]:
    """Every file below a folder but the marker; those that vanish meanwhile may be left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from copied_files(entry.path)
            elif entry.name != MARKER:
                status = entry.stat(follow_symlinks=False)
                yield CopiedFile(status.st_mtime_ns, status.st_size, entry.path)
        except OSError:
            continue
