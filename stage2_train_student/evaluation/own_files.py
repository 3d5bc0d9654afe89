"""Scans without a dataset around them: files, folders of files and ROS bags, read as the format `files` reads them."""

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from common.base.config import overridden
from common.base.errors import DataError
from common.scans.dataset import Dataset
from common.scans.formats.files import SensorFiles
from common.scans.label_map import LabelMap
from common.scans.readers import BAG_SUFFIXES, SUFFIXES, is_bag
from common.scans.scan_id import HIDDEN, ScanId

PREDICTED = ".predicted"
"""Part of the names of what `predict` writes beside a file."""


class OwnScans(NamedTuple):
    """Scans of one kind in one folder, or the clouds of a bag.

    Attributes:
        dataset: reads them; its root is the folder.
        scans: in order.
        pattern: of their files below the root, with {frame}; of a bag with {sequence}.
    """

    dataset: Dataset
    scans: list[ScanId]
    pattern: str

    @property
    def bag(self) -> Path | None:
        """The bag, None for files."""
        return None if "{frame}" in self.pattern else self.path(self.scans[0])

    def path(self, scan: ScanId) -> Path:
        """The file that holds a scan."""
        return self.dataset.root / self.pattern.format(**scan._asdict())

    def title(self, scan: ScanId) -> str:
        """What messages call a scan."""
        return f"{self.path(scan)}{'' if self.bag is None else f', message {int(scan.frame)}'}"


def own_scans(
    paths: Iterable[Path], label_map: LabelMap, overrides: Iterable[str] = (), out: Path | None = None
) -> list[OwnScans]:
    """Scans of files and of folders, a folder's in order of their names, each once. Some may have no points.

    Args:
        paths: files and folders; below a folder, every file that can be read is one.
        label_map: of the student's dataset; where that is of the format `files`, its options are these files', too.
        overrides: of these options, `key=value`.
        out: folder of predictions, which are no scans.

    Raises:
        DataError: a path does not exist, is of no kind that is read, or a folder holds nothing that is.
        SettingsError: there is no such option.
    """
    # Without options of its own: nothing came back where a point is at the origin or NaN.
    known: dict[str, Any] = dict(label_map.options) if label_map.format == SensorFiles.name else {"drop_origin": True}
    options = overridden({**known, "labels": None, "label_column": None}, overrides)
    # A file may be named twice, also as a.bin and ../folder/a.bin.
    files: dict[str, Path] = {}
    for file in (file for path in paths for file in files_of(path, out)):
        files.setdefault(os.path.abspath(file), file)
    found = []
    for (folder, bag, suffix), group in groupby(files.values(), kind_of):
        pattern = f"{{{'sequence' if bag else 'frame'}}}{suffix}"
        reader = SensorFiles(folder, {**options, "scans": pattern}, empty=True)
        if bag:
            scans = reader.scans([bag.removesuffix(suffix)])
        else:
            scans = [ScanId("00", path.name.removesuffix(suffix)) for path in group]
        found.append(OwnScans(Dataset(reader, label_map), scans, pattern))
    return found


def kind_of(path: Path) -> tuple[Path, str, str]:
    """What files that are read together have in common: folder, name of the bag if it is one, suffix."""
    return path.parent, path.name if is_bag(path) else "", "" if path.is_dir() else path.suffix


def files_of(path: Path, out: Path | None) -> Iterator[Path]:
    """A file or a bag itself; what is to be read below a folder, but not in `out`, in order.

    Raises:
        DataError: it does not exist, is of no kind that is read, or nothing in it is.
    """
    kinds = ", ".join([*SUFFIXES, *BAG_SUFFIXES])
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Scans of a dataset need --data.")
    if is_bag(path) or (path.is_file() and path.suffix.lower() in SUFFIXES):
        yield path
        return
    if path.is_file():
        raise DataError(f"{path}: files of this kind are not read; {kinds} are.")
    below = list(readable_below(path, out))
    if not below:
        raise DataError(f"{path}: nothing below this folder can be read; {kinds} can.")
    yield from below


def readable_below(folder: Path, out: Path | None) -> Iterator[Path]:
    """Files and bags below a folder, in order; what is hidden, and what `predict` wrote, is left out."""
    # A link to a folder that it lies in would lead in circles.
    left_out = {folder.resolve(), *folder.resolve().parents, *(() if out is None else (out.resolve(),))}
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name.startswith(HIDDEN) or PREDICTED in name:
            continue
        if is_bag(path) or (path.is_file() and path.suffix.lower() in SUFFIXES):
            yield path
        elif path.is_dir() and path.resolve() not in left_out:
            yield from readable_below(path, out)
