"""Notices that a store is deleted or replaced while somebody writes to it."""

from collections.abc import Collection

from common.base.errors import StoreError
from common.targets.store.file_names import ScanView
from common.targets.store.manifest import MANIFEST
from common.targets.store.storage import MissingFileError
from common.targets.store.store import TargetStore


class StoreWatch:
    """Remembers a store as it is now. A folder that is deleted comes back with the next file written: without this,
    a dump would not notice.
    """

    def __init__(self, store: TargetStore) -> None:
        self._store = store
        self._manifest = store.storage.read(MANIFEST)

    def check(self) -> None:
        """Refuse to go on in another store, by one small reading.

        Raises:
            StoreError: the store was deleted or replaced.
        """
        try:
            same = self._store.storage.read(MANIFEST) == self._manifest
        except MissingFileError:
            same = False
        if not same:
            raise StoreError(
                f"{self._store.location}: the store was deleted or replaced while this dump wrote to it ({MANIFEST} is "
                "gone or another one). Delete what is left there, and run the same command again."
            )

    def check_holds(self, items: Collection[ScanView]) -> None:
        """As `check`, and that the store lists all of some scan-views.

        Raises:
            StoreError: the store was deleted or replaced, or files of it are gone.
        """
        self.check()
        gone = sorted(set(items) - self._store.finished())
        if gone:
            scan, view = gone[0]
            raise StoreError(
                f"{self._store.location}: {len(gone):,} of {len(items):,} scan-views were there and are gone, the "
                f"first is {scan} view {view}. Somebody deletes files in this store; stop that, and run the same "
                "command again: it dumps exactly what is missing."
            )
