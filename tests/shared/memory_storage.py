"""A storage of a target store in memory."""

import threading
from collections.abc import Iterator

from common.targets.store.storage import MissingFileError, Storage


class MemoryStorage(Storage):
    """Files in memory."""

    location = "memory"

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()

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

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every file."""
        with self._lock:
            return iter([(name, len(data)) for name, data in self._files.items() if name.startswith(prefix)])
