"""Several stores of one identity, dumped on several machines, as one."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.base.errors import StoreError
from common.base.files import replacing
from common.base.overlap import started_ahead
from common.targets.store.file_names import ScanView
from common.targets.store.identity import differences
from common.targets.store.maintenance import whole_content
from common.targets.store.storage import refused
from common.targets.store.store import TargetStore

Holders = dict[ScanView, list[TargetStore]]


def check_mergeable(sources: Sequence[TargetStore]) -> None:
    """Refuse stores that were not made by the same teacher in the same way.

    Raises:
        StoreError: lists each difference.
    """
    first = sources[0]
    for other in sources[1:]:
        sides = (first.location, other.location)
        lines = differences(first.identity.described, other.identity.described, sides=sides)
        if lines:
            raise StoreError(
                f"{other.location}: was made with other settings than {first.location}; nothing was merged.\n"
                + "\n".join(lines)
                + "\nMerge only stores that were dumped with the same teacher and settings; `convert` can reduce the "
                "store that keeps more to what the other one keeps."
            )


def holders(sources: Sequence[TargetStore]) -> Holders:
    """Which stores hold each scan-view, in the order of the scan-views.

    Raises:
        StoreError: two stores hold a scan-view in different sizes.
    """
    found: Holders = {}
    sizes: dict[ScanView, int] = {}
    unequal = []
    for store in sources:
        for item, size in store.sizes().items():
            found.setdefault(item, []).append(store)
            if sizes.setdefault(item, size) != size:
                unequal.append(item)
    if unequal:
        raise conflict(unequal[0], found[unequal[0]], len(unequal))
    return dict(sorted(found.items()))


def conflict(item: ScanView, stores: Sequence[TargetStore], count: int = 1) -> StoreError:
    """Two stores hold different targets for the same scan-view."""
    scan, view = item
    others = f" (and {count - 1} more scan-views)" if count > 1 else ""
    return StoreError(
        f"scan {scan}, view {view}{others} differs between {' and '.join(store.location for store in stores)}. Find "
        "out which one is right with `verify --live`, and delete the file in the other one."
    )


def whole_copy(item: ScanView, stores: Sequence[TargetStore], signed: bool = False) -> bytes:
    """The scan file that several stores hold, from one whose copy is whole; `signed` as in `whole_content`.

    Raises:
        StoreError: no copy is whole, or whole copies differ.
    """
    scan, view = item
    whole: dict[bytes, TargetStore] = {}
    problems = []
    for store in stores:
        try:
            whole[whole_content(store, scan, view, signed)] = store
        except StoreError as error:
            problems.append(str(error))
    if len(whole) > 1:
        raise conflict(item, list(whole.values()))
    if not whole:
        raise StoreError(f"scan {scan}, view {view}: no whole copy: {' '.join(problems)}")
    return next(iter(whole))


def copy_all(found: Holders, target: TargetStore, threads: int = 1) -> Iterator[int]:
    """Copy the scan-views that `target` does not hold yet into it, with threads; yields the bytes of each.

    Raises:
        StoreError: as `whole_copy`, or a file cannot be written.
    """

    def copy(item: ScanView) -> int:
        content = whole_copy(item, found[item], target.signed)
        target.storage.write(target.name(*item), content)
        return len(content)

    left = [item for item, stores in found.items() if target not in stores]
    for _, future in started_ahead(copy, left, 2 * threads, threads):
        yield future.result()


def archive_all(found: Holders, rest: Mapping[str, bytes], path: Path, threads: int = 1) -> Iterator[int]:
    """Write scan-views, and the rest of the files by name (the manifest, and records of what was skipped), into one zip
    archive that is a read-only store, whole or not at all; yields bytes of each scan-view.

    Raises:
        StoreError: as `whole_copy`, or the archive cannot be written.
    """
    if path.is_dir():
        raise StoreError(f"{path}: is a folder. Choose another name for the archive.")
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in sorted(rest.items()):
                archive.writestr(zipfile.ZipInfo(name), data)
            for item, future in started_ahead(lambda item: whole_copy(item, found[item]), found, 2 * threads, threads):
                content = future.result()
                archive.writestr(zipfile.ZipInfo(found[item][0].name(*item)), content)
                yield len(content)
    except OSError as error:
        raise refused(path, "written", error) from error
