"""Looking after stores: what is missing, damaged, foreign or changed in one."""

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.base.errors import DataError, StoreError
from common.base.files import TEMPORARY_SUFFIX
from common.base.overlap import started_ahead
from common.scans.scan_files import ScanFiles
from common.scans.scan_id import ScanId
from common.targets.store.checks import ForeignFileError, check_scan_file
from common.targets.store.chunks import MemberError
from common.targets.store.file_names import ScanView
from common.targets.store.layout import scan_hash
from common.targets.store.storage import FolderStorage, MissingFileError
from common.targets.store.store import TargetStore

LEFTOVER_SECONDS = 3600
"""Age at which a half-written file belongs to a writer that crashed, rather than to one at work."""

READINGS = 4
"""A file counts as wrong when so many readings in a row give the same bytes: networks and disks may garble some."""

SourceHash = Callable[[ScanId], str | None]
"""Hash of the points of a scan as they are now, None for one that is not there; raises DataError where unreadable."""

ProblemKind = Literal["missing", "damaged", "foreign", "changed", "unreadable", "unsteady", "unsigned"]


@dataclass(frozen=True)
class Problem:
    """What is wrong with one scan-view, or could not be found out about it.

    Attributes:
        scan: which scan.
        view: number of the view.
        kind: `missing`; `damaged`, bytes are not what was written; `foreign`, of another store; `changed`, the scan on
            disk is not the one that the teacher saw; `unreadable`, the file, or the scan to compare with, cannot be
            read just now; `unsteady`, it looked wrong, but differed when read again; `unsigned`, nothing is
            wrong, but the file was written before files had the hash of their store's identity, so that volume and
            policy of views could not be compared.
        array: the array, where only one is concerned; else empty.
        text: what is the case.
    """

    scan: ScanId
    view: int
    kind: ProblemKind
    array: str
    text: str

    @property
    def is_note(self) -> bool:
        """Whether nothing is known to be wrong."""
        return self.kind == "unsigned"

    @property
    def scan_view(self) -> ScanView:
        """Which scan and view."""
        return self.scan, self.view

    @property
    def file_is_wrong(self) -> bool:
        """Whether there is a file that no reader should use."""
        return self.kind in ("damaged", "foreign", "changed")


def absent(store: TargetStore, finished: Collection[ScanView], expected: Iterable[ScanId] = ()) -> list[Problem]:
    """Scan-views that should be in a store and are not, and ones that should not be there.

    Args:
        store: the store.
        finished: what it holds.
        expected: scans that it should hold; scans of which it holds any view are expected anyhow.
    """
    views = store.identity.views.count
    scans = sorted({scan for scan, _ in finished} | set(expected))
    missing = [
        Problem(scan, view, "missing", "", "is not in the store")
        for scan in scans
        for view in range(views)
        if (scan, view) not in finished
    ]
    text = f"is not among the {views} views of this store"
    return missing + [Problem(scan, view, "foreign", "", text) for scan, view in sorted(finished) if view >= views]


def inspect_all(
    store: TargetStore, items: Iterable[ScanView], source_hash: SourceHash | None = None, threads: int = 1
) -> Iterator[Problem | None]:
    """`inspect` many scan-views with threads, in order.

    Args:
        store: the store.
        items: scan-views that are in it.
        source_hash: to compare the scans with those that the teacher saw; None not to.
        threads: files that are read and decoded at once.
    """
    for _, future in started_ahead(lambda item: inspect(store, *item, source_hash), items, 2 * threads, threads):
        yield future.result()


def source_hashes(files: ScanFiles, present: Iterable[ScanId]) -> SourceHash:
    """The hashes of those scans of a dataset that are there."""
    known = frozenset(present)
    return lambda scan: scan_hash(files.points(scan)) if scan in known else None


def inspect(store: TargetStore, scan: ScanId, view: int, source_hash: SourceHash | None = None) -> Problem | None:
    """What is wrong with one scan-view, None if nothing is. See `inspect_all`."""
    problem, content = _inspect_once(store, scan, view, source_hash)
    if problem is None or not problem.file_is_wrong:
        return problem
    for _ in range(1, READINGS):
        store.storage.drop_local_copy(store.name(scan, view))
        if _inspect_once(store, scan, view, source_hash) != (problem, content):
            text = f"read as {problem.kind} ({problem.text}) at first, and differently when read again"
            return Problem(scan, view, "unsteady", problem.array, text)
    return problem


def _inspect_once(
    store: TargetStore, scan: ScanId, view: int, source_hash: SourceHash | None
) -> tuple[Problem | None, bytes | None]:
    """The problem, and the content of the file where there is one to read."""
    try:
        content = store.storage.read(store.name(scan, view))
    except MissingFileError:
        return Problem(scan, view, "missing", "", "is not in the store"), None
    except (StoreError, OSError) as error:
        return Problem(scan, view, "unreadable", "", str(error)), None
    try:
        hash_now = None if source_hash is None else source_hash(scan)
    except DataError as error:
        return Problem(scan, view, "unreadable", "", error.message), content
    return inspect_bytes(store, scan, view, content, hash_now), content


def whole_content(store: TargetStore, scan: ScanId, view: int, signed: bool = False) -> bytes:
    """The scan file of one scan-view, in which nothing is wrong.

    Args:
        store: that holds it.
        scan: which scan.
        view: number of the view.
        signed: whether it must have the hash of the store's identity, as where it is copied to a store that asks it.

    Raises:
        StoreError: it is missing, cannot be read, or something is wrong with it.
    """
    problem, content = _inspect_once(store, scan, view, None)
    if content is None or not (problem is None or problem.is_note):
        what = f"{problem.array} {problem.text}".strip() if problem else "cannot be read"
        raise StoreError(f"{what}. Run the command repair on {store.location}.")
    if signed and problem is not None:
        raise StoreError(
            f"{store.location}: is of an earlier version, its file {problem.text}, which the other store asks of its "
            "files. Copy into a new store, or dump again."
        )
    return content


def inspect_bytes(
    store: TargetStore, scan: ScanId, view: int, content: bytes, hash_now: str | None = None
) -> Problem | None:
    """What is wrong with the bytes of a scan file, see `checks.check_scan_file`.

    Args:
        store: that the file should belong to.
        scan: that the file should be of.
        view: number of the view that it should be of.
        content: of the file.
        hash_now: of the scan as it is now; None not to compare.
    """
    try:
        attributes, _ = check_scan_file(content, store.identity, scan, view, store.signed)
    except MemberError as error:
        return Problem(scan, view, "damaged", error.array, error.problem)
    except ForeignFileError as error:
        return Problem(scan, view, "foreign", "", error.summary)
    if hash_now is not None and attributes.scan_sha256 != hash_now:
        return Problem(scan, view, "changed", "", "the scan on disk is not the one that the teacher saw")
    if attributes.identity_hash is None:
        return Problem(scan, view, "unsigned", "", "does not say which store it was written for")
    return None


def sample(items: Sequence[ScanView], count: int, seed: int = 0) -> list[ScanView]:
    """`count` random items, or all where there are no more; in order, and the same for the same seed."""
    return sorted(random.Random(seed).sample(sorted(items), min(count, len(items))))


def leftovers(store: TargetStore, age: float = LEFTOVER_SECONDS) -> list[Path]:
    """Half-written files, older than `age` seconds, that writers which crashed left in a store that is a folder."""
    if not isinstance(store.storage, FolderStorage):
        return []
    found = store.storage.folder.rglob(f"*{TEMPORARY_SUFFIX}")
    return sorted(path for path in found if seconds_since_written(path) > age)


def seconds_since_written(path: Path) -> float:
    """Age of a file; 0 if it has just gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
