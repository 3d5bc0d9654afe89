"""Which storage a path or URL means."""

from pathlib import Path

from common.targets.store.archive import ArchiveStorage
from common.targets.store.remote import open_remote
from common.targets.store.storage import FolderStorage, Storage


def open_storage(location: str | Path | Storage) -> Storage:
    """The storage at a path or URL: a folder, a `.zip` archive, or `s3://bucket/prefix` and the like; one as it is.

    Raises:
        StoreError: the URL's scheme needs a package that is not installed, or is unknown.
    """
    if not isinstance(location, str | Path):
        return location
    text = str(location)
    if "://" in text:
        return open_remote(text)
    return ArchiveStorage(Path(text)) if text.endswith(".zip") else FolderStorage(Path(text))
