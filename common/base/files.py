"""Files that are either whole or absent, even after a crash or a power loss."""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".partial"

NEXT_STEPS = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EACCES: "Check the permissions",
    errno.EPERM: "Check the permissions",
    errno.EROFS: "Choose a folder that can be written",
    errno.EISDIR: "It is a folder: choose another name",
    errno.ENOTDIR: "A part of the path is a file: choose another folder",
    errno.EEXIST: "A part of the path is a file: choose another folder",
    errno.ENOTEMPTY: "It is there already: choose another folder, or remove it",
    errno.ENOENT: "Check the path",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    On an error, a Ctrl-C included, the temporary file is removed and `path` is left as it was. An error of the disk
    names `path`.
    """
    temporary = temporary_beside(path)
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
            flush_to_disk(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An error of the disk that names no file, as that of a full disk, or the temporary one, names `path` instead."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise


def next_step(error: OSError) -> str:
    """What a user can do about an error of the disk: the first half of a sentence."""
    return NEXT_STEPS.get(error.errno or 0, "Check the disk")


def check_writable(folder: Path) -> None:
    """Make a folder, and raise an OSError if no file can be made in it: before the work whose results go there."""
    write_atomically(folder / f"check{TEMPORARY_SUFFIX}", b"")
    (folder / f"check{TEMPORARY_SUFFIX}").unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """As `check_writable`, for a file that will be written: it may be there, but not as a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    check_writable(path.parent)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other writer uses, on this machine or another."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, a whole file or nothing."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def flush_to_disk(path: Path) -> None:
    """Ask the operating system to put a file's content, or a folder's entries, onto the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
