"""A store in one zip archive."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from common.base.errors import StoreError
from common.targets.store.storage import MissingFileError, Storage

UNREADABLE_ZIP = (zipfile.BadZipFile, ValueError, OSError, OverflowError, struct.error, RuntimeError)
"""What Python raises for a zip directory that is damaged or forged."""


class ArchiveStorage(Storage):
    """One zip archive, read only: a finished store to carry around, as the command `merge --archive` makes it."""

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)
        try:
            # Only names and places are kept: a handle shared by threads or forked processes would mix their reads.
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist() if info.filename[-1:] != "/"}
        except UNREADABLE_ZIP as error:
            raise StoreError(f"{path}: not a readable zip archive of a store ({error}).") from error

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
                    raise StoreError(f"{self.path}: {name} reaches beyond the end of the archive. Make it again.")
                file.seek(info.header_offset)
                _, name_bytes, extra_bytes = struct.unpack("<26sHH", file.read(30))
                file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
                data = file.read(info.compress_size)
        except (OSError, ValueError, OverflowError, struct.error) as error:
            raise StoreError(f"{self.path}: {name} cannot be read from the archive ({error}).") from error
        if zlib.crc32(data) != info.CRC:
            raise StoreError(f"{self.path}: {name} is damaged in the archive. Make the archive again.")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Refused: an archive cannot be changed safely."""
        raise StoreError(f"{self.path}: an archive is read only. Write to a folder and make an archive of it.")

    def create(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        return False

    def delete(self, name: str) -> None:
        self.write(name, b"")

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return iter([(name, info.file_size) for name, info in self._members.items() if name.startswith(prefix)])
