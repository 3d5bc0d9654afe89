"""Which file of a store holds which view of which scan."""

import re
import sys

from common.base.errors import DataError, StoreError
from common.scans.scan_id import ScanId

SEQUENCES = "sequences/"
SUFFIX = ".zarr.zip"
VIEW_NUMBER = re.compile("0|[1-9][0-9]{0,8}")

ScanView = tuple[ScanId, int]
"""A scan and the number of one of its views."""


def file_name(scan: ScanId, view: int) -> str:
    """File of one scan and view, whether it exists or not."""
    return f"{SEQUENCES}{scan.sequence}/{scan.frame}.v{view}{SUFFIX}"


def is_scan_file(name: str) -> bool:
    """Whether a file's name is that of a scan file, unless it is the companion that copies from a Mac bring along."""
    return name.endswith(SUFFIX) and not name.rpartition("/")[2].startswith("._")


def scan_view_of(name: str, location: str) -> ScanView:
    """The inverse of `file_name`; `location` is the store's, for the message.

    Raises:
        StoreError: the name is that of no scan and view.
    """
    sequence, _, file = name.removeprefix(SEQUENCES).partition("/")
    frame, _, view = file.removesuffix(SUFFIX).rpartition(".v")
    try:
        if VIEW_NUMBER.fullmatch(view) is None:
            raise DataError(f"{view!r} is not the number of a view.")
        # Of a million scans, the names of frames would be half of the index; most sequences count alike.
        return ScanId(sys.intern(sequence), sys.intern(frame)), int(view)
    except DataError as error:
        raise StoreError(
            f"{location}: holds the file {name!r}, which a store never writes: {error.message} Do not trust "
            "this store if you did not make it; if you did, delete that file."
        ) from error
