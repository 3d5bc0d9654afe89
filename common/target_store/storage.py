"""Where a store's files live: a folder, memory, one zip archive, or an object store (in `remote`).

Every backend offers the same few operations and passes the same conformance suite. `write` puts a whole file or
nothing, whatever happens meanwhile; that is all the crash safety of a store rests on.
"""

import errno
import os
import shutil
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from common.errors import StoreError
from common.files import TEMPORARY_SUFFIX, flush_to_disk, next_step, replacing, temporary_beside, write_atomically

UNREADABLE_ZIP = (
    zipfile.BadZipFile,
    ValueError,
    OSError,
    OverflowError,
    struct.error,
    NotImplementedError,
    RuntimeError,
)
"""What Python raises for a zip directory that is damaged or forged."""

WITHOUT_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class MissingFileError(KeyError):
    """There is no file of that name in the storage."""


class Storage(Protocol):
    """A flat set of named files. Names are relative paths with forward slashes."""

    @property
    def location(self) -> str:
        """Where it is, for messages and for `open_storage`."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file. Raises MissingFileError."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file or nothing; replaces one of the same name."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file unless there is one already; whether it was written. One of several writers wins."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        ...

    def drop_local_copy(self, name: str) -> bool:
        """Remove the local copy, if any, of a file that turned out to be damaged; whether reading it again may help."""
        ...

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every file whose name starts with `prefix`, in any order."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left, None where there is no telling."""
        ...


class FolderStorage:
    """Files in a folder of a local or mounted file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """A whole file. Raises MissingFileError."""
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
        """Remove a file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise refused(self.folder / name, "deleted", error) from error

    def drop_local_copy(self, name: str) -> bool:
        """There is none; reading again gives the same bytes."""
        return False

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Finished files below the folder; half-written ones of crashed processes are passed over."""
        start = prefix.rpartition("/")[0]
        try:
            for name, size in _walk(self.folder / start, f"{start}/" if start else ""):
                if name.startswith(prefix):
                    yield name, size
        except OSError as error:
            raise refused(self.folder / start, "listed", error) from error

    def free_bytes(self) -> int | None:
        """Free space of the disk."""
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        return shutil.disk_usage(existing).free


class MemoryStorage:
    """Files in memory: for trials and tests."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def location(self) -> str:
        """A name for messages."""
        return "memory"

    def read(self, name: str) -> bytes:
        """A whole file. Raises MissingFileError."""
        try:
            return self._files[name]
        except KeyError as error:
            raise MissingFileError(name) from error

    def write(self, name: str, data: bytes) -> None:
        """Keep a copy of the data."""
        with self._lock:
            self._files[name] = bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """Keep a copy unless there is one."""
        with self._lock:
            if name in self._files:
                return False
            self._files[name] = bytes(data)
            return True

    def delete(self, name: str) -> None:
        """Remove a file."""
        with self._lock:
            self._files.pop(name, None)

    def drop_local_copy(self, name: str) -> bool:
        """There is none; reading again gives the same bytes."""
        return False

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every file."""
        with self._lock:
            return iter([(name, len(data)) for name, data in self._files.items() if name.startswith(prefix)])

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None


class ArchiveStorage:
    """One zip archive, read only: a finished store to carry around. Write one with `write_archive`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Only names and places are kept: a handle shared by threads or forked processes would mix their reads.
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist() if info.filename[-1:] != "/"}
        except UNREADABLE_ZIP as error:
            raise StoreError(f"{path}: not a readable zip archive of a store ({error}).") from error

    @property
    def location(self) -> str:
        """The archive's path."""
        return str(self.path)

    def read(self, name: str) -> bytes:
        """A whole member. Raises MissingFileError; StoreError where its checksum does not match."""
        if name not in self._members:
            raise MissingFileError(name)
        # Not by ZipFile.open: opening an archive parses its whole directory, once per scan would be too slow.
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise StoreError(f"{self.path}: {name} is compressed; make the archive with the command merge --archive.")
        try:
            with self.path.open("rb") as file:
                # Python would set so many bytes aside before it looks how many there are.
                if info.compress_size > os.fstat(file.fileno()).st_size:
                    raise StoreError(f"{self.path}: {name} reaches beyond the end of the archive. Make it anew.")
                file.seek(info.header_offset)
                _, name_bytes, extra_bytes = struct.unpack("<26sHH", file.read(30))
                file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
                data = file.read(info.compress_size)
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise StoreError(f"{self.path}: {name} cannot be read from the archive ({error}).") from error
        if zlib.crc32(data) != info.CRC:
            raise StoreError(f"{self.path}: {name} is damaged in the archive. Make the archive anew.")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Refused: an archive cannot be changed safely."""
        raise StoreError(f"{self.path}: an archive is read only. Write to a folder and make an archive of it.")

    def create(self, name: str, data: bytes) -> bool:
        """Refused."""
        self.write(name, data)
        return False

    def delete(self, name: str) -> None:
        """Refused."""
        self.write(name, b"")

    def drop_local_copy(self, name: str) -> bool:
        """There is none; reading again gives the same bytes."""
        return False

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every member."""
        return iter([(name, info.file_size) for name, info in self._members.items() if name.startswith(prefix)])

    def free_bytes(self) -> int | None:
        """None to speak of."""
        return None


def write_archive(source: Storage, path: Path) -> None:
    """Copy every file of a storage into one zip archive (stored members), whole or not at all."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, _ in sorted(source.sizes()):
            archive.writestr(zipfile.ZipInfo(name), source.read(name))


def open_storage(location: str | Path) -> Storage:
    """The storage at a path or URL: a folder, a `.zip` archive, or `s3://bucket/prefix` and the like.

    Raises:
        StoreError: the URL's scheme needs a package that is not installed, or is unknown.
    """
    text = str(location)
    if "://" in text:
        from common.target_store.remote import open_remote

        return open_remote(text)
    return ArchiveStorage(Path(text)) if text.endswith(".zip") else FolderStorage(Path(text))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    # os.scandir, not glob: the listing is the store's index, and has to stay fast for tens of thousands of scans.
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.name.endswith(TEMPORARY_SUFFIX):
                # Another process may have deleted it since.
                with suppress(FileNotFoundError):
                    yield prefix + entry.name, entry.stat().st_size


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
