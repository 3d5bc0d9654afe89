"""Which files below a folder are scans, which are their labels, and the patterns that find them."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.base.errors import DataError
from common.scans.file_pattern import path_expression
from common.scans.readers import BAG_SUFFIXES, SUFFIXES, is_bag
from common.scans.scan_id import HIDDEN, is_name

LABEL_SUFFIXES = (".label", ".bin", ".npy")
LABEL_WORD = re.compile(r"[._-]?(?<![a-z])labels?(?![a-z])[._-]?", re.IGNORECASE)


class FoundFiles(NamedTuple):
    """Scans and labels below a folder.

    Attributes:
        scans: pattern of the scans, see `common.scans.file_pattern`.
        labels: pattern of their labels, None where there are none.
        others: how many files of each other kind there are, by suffix.
    """

    scans: str
    labels: str | None
    others: dict[str, int]


def find_files(folder: Path) -> FoundFiles:
    """Look for scans and labels below a folder.

    Raises:
        DataError: there are no scans.
    """
    paths = list_files(folder)
    groups: dict[tuple[str, int], list[PurePosixPath]] = {}
    for path in paths:
        # A folder is a bag, whatever it is called.
        is_folder = (folder / path).is_dir()
        kind = "" if is_folder else path.suffix.lower()
        if (is_folder or kind in (*SUFFIXES, *BAG_SUFFIXES)) and not is_label(path):
            groups.setdefault((kind, len(path.parts)), []).append(path)
    if not groups:
        there = ", ".join(f"{count} {suffix}" for suffix, count in Counter(map(_suffix, paths)).most_common(5))
        raise DataError(
            f"{folder}: no scans here ({', '.join([*SUFFIXES, *BAG_SUFFIXES])} files, or folders of ROS 2 bags); "
            f"there are {there or 'no files'}."
        )
    (kind, _), alike = max(groups.items(), key=lambda group: len(group[1]))
    pattern = scan_pattern(alike, kind and alike[0].suffix)
    expression = path_expression(pattern)
    fitting = [match for path in alike if (match := expression.fullmatch(str(path)))]
    labels = label_pattern([path for path in paths if is_label(path)], fitting)
    known = [expression] if labels is None else [expression, path_expression(labels)]
    others = [path for path in paths if not any(_fits(one, path) for one in known)]
    return FoundFiles(pattern, labels, dict(Counter(map(_suffix, others))))


def list_files(folder: Path) -> list[PurePosixPath]:
    """Files below a folder, relative to it, sorted; a folder that is a ROS 2 bag as one. Hidden ones are left out.

    Links to folders are followed, to each folder once: recordings often lie on several disks.

    Raises:
        DataError: it is no folder, or a bag itself.
    """
    if not folder.is_dir() or is_bag(folder):
        raise DataError(f"{folder}: not a folder with scans in it. Name the folder that holds your scans or bags.")
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        below = PurePosixPath(Path(place).relative_to(folder).as_posix())
        bags = [name for name in folders if is_bag(Path(place, name))]
        folders[:] = [name for name in folders if name not in bags and not name.startswith(HIDDEN)]
        found += [below / name for name in (*bags, *names) if not name.startswith(HIDDEN)]
    return sorted(found)


def is_label(path: PurePosixPath) -> bool:
    """Whether a name sounds like labels."""
    return path.suffix == ".label" or any(LABEL_WORD.search(part) for part in path.parts)


def scan_pattern(paths: Sequence[PurePosixPath], suffix: str) -> str:
    """The pattern of scans of one kind, equally deep: folders as most are called, but for that of the sequence.

    That is rather one of numbers, or below a folder `sequences`, and else the one of which there are most. A bag is a
    sequence itself.
    """
    folders = [list(column) for column in zip(*(path.parts[:-1] for path in paths), strict=True)]
    usual = [Counter(column).most_common(1)[0][0] for column in folders]
    if suffix.lower() not in SUFFIXES:
        return "/".join([*usual, f"{{sequence}}{suffix}"])
    scores = [
        (all(part.isdigit() for part in column) or usual[place - 1 : place] == ["sequences"], len(set(column)))
        for place, column in enumerate(folders)
    ]
    best = max(scores, default=(False, 1))
    if best > (False, 1):
        usual[scores.index(best)] = "{sequence}"
    return "/".join([*usual, f"{{frame}}{suffix}"])


def label_pattern(paths: Sequence[PurePosixPath], scans: Sequence[re.Match[str]]) -> str | None:
    """The pattern of label files that belong to the scans that a pattern found; None without any."""
    known = {(match.groupdict().get("sequence"), match.groupdict().get("frame")) for match in scans}
    frames, sequences = {frame for _, frame in known}, {sequence for sequence, _ in known if sequence is not None}
    counts: Counter[str] = Counter()
    for path in paths:
        frame = path.stem if path.stem in frames else LABEL_WORD.sub("", path.stem)
        sequence = next((part for part in path.parts[:-1] if part in sequences), None)
        if path.suffix.lower() in LABEL_SUFFIXES and frame and (sequence, frame) in known:
            parts = ["{sequence}" if part == sequence else part for part in path.parts[:-1]]
            counts["/".join([*parts, path.stem.replace(frame, "{frame}") + path.suffix])] += 1
    return counts.most_common(1)[0][0] if counts else None


def _fits(expression: re.Pattern[str], path: PurePosixPath) -> bool:
    """Whether a file fits a pattern, and its fields may name a scan."""
    match = expression.fullmatch(str(path))
    return match is not None and all(map(is_name, match.groupdict().values()))


def _suffix(path: PurePosixPath) -> str:
    return path.suffix or path.name
