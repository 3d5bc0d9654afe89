"""Where a store's files live: a folder; in `archive` one zip archive, in `remote` an object store.

Every backend offers the same few operations and passes the same conformance suite. `write` puts a whole file or
nothing, whatever happens meanwhile; that is all the crash safety of a store rests on.
"""

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common.base.errors import StoreError
from common.base.files import TEMPORARY_SUFFIX, flush_to_disk, next_step, temporary_beside, write_atomically

WITHOUT_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class MissingFileError(KeyError):
    """There is no file of that name in the storage."""


class Storage(ABC):
    """A flat set of named files. Names are relative paths with forward slashes.

    Attributes:
        location: where it is, for messages and for `open_storage`.
    """

    location: str

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file. Raises MissingFileError."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file or nothing; replaces one of the same name."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless there is one already; whether it was written. One of several writers wins."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""

    def drop_local_copy(self, name: str) -> bool:
        """Remove the local copy, if any, of a file that turned out to be damaged; whether reading it again may help."""
        return False

    @abstractmethod
    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every file whose name starts with `prefix`, in any order."""

    def names(self, prefix: str = "") -> Iterator[str]:
        """As `sizes`, the names alone, which a file system tells much faster."""
        return (name for name, _ in self.sizes(prefix))


class FolderStorage(Storage):
    """Files in a folder of a local or mounted file system."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise MissingFileError(name) from error
        except OSError as error:
            raise refused(self.folder / name, "read", error) from error

    def write(self, name: str, data: bytes) -> None:
        """Write under a temporary name, flush to disk, rename, flush the folder."""
        try:
            write_atomically(self.folder / name, data)
        except OSError as error:
            raise refused(self.folder / name, "written", error) from error

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, but link the finished file into place, which fails where there is one."""
        path = self.folder / name
        temporary = temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                flush_to_disk(temporary)
                created = _put_new(temporary, path)
                flush_to_disk(path.parent)
                return created
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise refused(path, "written", error) from error

    def delete(self, name: str) -> None:
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                (self.folder / name).unlink()
        except OSError as error:
            raise refused(self.folder / name, "deleted", error) from error

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Finished files below the folder; half-written ones of crashed processes are passed over."""
        for name, entry in self._listed(prefix):
            # Another process may have deleted it since.
            with suppress(FileNotFoundError):
                yield name, entry.stat().st_size

    def names(self, prefix: str = "") -> Iterator[str]:
        """Finished files, without looking at each of them."""
        # Links may lead nowhere, as those of git-annex do where the content is elsewhere.
        return (name for name, entry in self._listed(prefix) if not entry.is_symlink() or os.path.exists(entry.path))

    def _listed(self, prefix: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
        start = prefix.rpartition("/")[0]
        try:
            for name, entry in _walk(self.folder / start, f"{start}/" if start else ""):
                if name.startswith(prefix):
                    yield name, entry
        except OSError as error:
            raise refused(self.folder / start, "listed", error) from error

    def free_bytes(self) -> int:
        """Free space of the disk."""
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        return shutil.disk_usage(existing).free


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    # os.scandir, not glob: the listing is the store's index, and has to stay fast for a million scans.
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.name.endswith(TEMPORARY_SUFFIX):
                yield prefix + entry.name, entry


def _put_new(temporary: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        # No hard links here, as on exFAT: of writers that start within the same instant the last one wins.
        if path.exists():
            return False
        temporary.replace(path)
    return True


def refused(path: Path, what: str, error: OSError) -> StoreError:
    """An operation on a file or folder that the operating system refused; `what` is a participle, such as `read`."""
    return StoreError(
        f"{path}: cannot be {what} ({error.strerror or error}). {next_step(error)}, then run the command again."
    )
