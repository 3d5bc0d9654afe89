"""Scans that a dump could not use, and why: one small file a scan-view, so that no two writers share one.

    skipped/00/000001.v0.json     {"reason": "... the scan is empty (0 bytes) ..."}

The listing is the index here as well. Targets win: a record of a scan-view whose targets are in the store says nothing.
"""

import json
import re
from collections.abc import Iterable, Set

from common.base.errors import StoreError
from common.base.text import printable
from common.base.untrusted_json import parse_json
from common.scans.scan_id import ScanId, is_name
from common.targets.store.file_names import ScanView
from common.targets.store.storage import MissingFileError
from common.targets.store.store import TargetStore

SKIPPED = "skipped/"
LONGEST_REASON = 1000
LARGEST_RECORD = 16 * LONGEST_REASON
"""Bytes; nothing larger is read."""

_NAME = re.compile(rf"{SKIPPED}([^/]+)/([^/]+)\.v(0|[1-9][0-9]{{0,8}})\.json")

Skipped = dict[ScanView, str]
"""Why a scan-view has no targets."""


def record_name(scan: ScanId, view: int) -> str:
    """File that says why a scan-view was skipped."""
    return f"{SKIPPED}{scan.sequence}/{scan.frame}.v{view}.json"


def record_skipped(store: TargetStore, scan: ScanId, view: int, reason: str) -> None:
    """Write down that a scan-view has no targets, and why."""
    store.storage.write(record_name(scan, view), record_bytes(reason))


def record_bytes(reason: str) -> bytes:
    """Content of such a file."""
    return (json.dumps({"reason": reason[:LONGEST_REASON]}) + "\n").encode()


def remove_skipped(store: TargetStore, scan: ScanId, view: int) -> None:
    """Remove the record of a scan-view."""
    store.storage.delete(record_name(scan, view))


def skipped_scan_views(store: TargetStore) -> set[ScanView]:
    """Scan-views with a record, read from the listing alone; some may have got their targets since."""
    found = set()
    for name, size in store.storage.sizes(SKIPPED):
        match = _NAME.fullmatch(name)
        # As among the scan files: what the store did not write itself is none of its files.
        if match and size <= LARGEST_RECORD and is_name(match[1]) and is_name(match[2]):
            found.add((ScanId(match[1], match[2]), int(match[3])))
    return found


def read_skipped(store: TargetStore, finished: Set[ScanView]) -> Skipped:
    """Why scan-views that are not `finished` were skipped, in order; what was never tried is not among them.

    Raises:
        StoreError: a record is damaged.
    """
    found = {}
    for scan, view in sorted(skipped_scan_views(store) - finished):
        name = record_name(scan, view)
        try:
            reason = parse_json(store.storage.read(name))["reason"]
        except MissingFileError:
            # A dump has made up for it since.
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{store.location}/{name}: is damaged ({error!r}). Delete it and dump again.") from error
        found[scan, view] = printable(str(reason)[:LONGEST_REASON])
    return found


def records(sources: Iterable[TargetStore], finished: Set[ScanView]) -> dict[str, bytes]:
    """By the names of their files, the records of scan-views that are not, or not about to be, `finished` elsewhere."""
    found = (item for source in sources for item in read_skipped(source, finished).items())
    return {record_name(*scan_view): record_bytes(reason) for scan_view, reason in found}


def carry_over(sources: Iterable[TargetStore], target: TargetStore, finished: Set[ScanView]) -> None:
    """Copy `records` into the target."""
    for name, record in records(sources, finished).items():
        target.storage.write(name, record)
