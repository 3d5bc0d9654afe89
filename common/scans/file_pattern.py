"""Patterns of files such as `sequences/{sequence}/velodyne/{frame}.bin`: which files fit, and where one is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.scans.scan_files import is_there, names_in
from common.scans.scan_id import HIDDEN, ScanId, is_name
from common.scans.sequence_names import folder_name

FIELD = re.compile(r"\{(sequence|frame)\}")
BRACES = re.compile(r"\{\w*\}")
ONLY_SEQUENCE = "00"
"""The sequence of all scans where a pattern has none."""


class Found(NamedTuple):
    """A file or folder that fits a pattern."""

    sequence: str
    frame: str
    path: Path


@dataclass(frozen=True)
class FilePattern:
    """A path below a folder, with the fields {sequence} and {frame} in it, each anywhere and as often as one likes.

    Raises:
        ValueError: it has other fields, or leads out of the folder.
    """

    text: str

    def __post_init__(self) -> None:
        unknown = BRACES.search(FIELD.sub("", self.text))
        parts = Path(self.text).parts
        if unknown or not parts or Path(self.text).is_absolute() or ".." in parts:
            raise ValueError(f"'{self.text}' is no path below DATA with {{sequence}} and {{frame}} as its only fields")

    def path(self, root: Path, scan: ScanId) -> Path:
        """Where the file of a scan is, or would be."""
        places = [
            root / _filled(self.text, {"sequence": name, "frame": scan.frame}) for name in _names_of(scan.sequence)
        ]
        return next((place for place in places[1:] if not is_there(places[0]) and is_there(place)), places[0])

    def found(self, root: Path, sequence: str | None = None, hidden: list[Path] | None = None) -> list[Found]:
        """What fits below a folder, sorted; a frame is empty where the pattern has none.

        Args:
            root: the folder.
            sequence: only of this one. Numbers of sequences have two digits, in folders perhaps one.
            hidden: gets what lies there under a name that begins with a dot or that no scan can have: it is no part of
                a dataset.

        Raises:
            DataError: a folder cannot be listed.
        """
        if "{sequence}" not in self.text and sequence not in (None, ONLY_SEQUENCE):
            return []
        found: list[Found] = []
        for known in [{}] if sequence is None else [{"sequence": name} for name in _names_of(sequence)]:
            for fields, path in _fitting(root, Path(self.text).parts, known, [] if hidden is None else hidden):
                name = folder_name(fields.get("sequence", ONLY_SEQUENCE))
                found.append(Found(name, fields.get("frame", ""), path))
            if found:
                break
        return found

    def without(self, other: "FilePattern", found: list[Found]) -> list[Found]:
        """Of what was found by this pattern, all but what the other pattern makes of its fields.

        Where labels are `{frame}_labels.npy`, the pattern of scans `{frame}.npy` fits `0_labels.npy` too.
        """
        if Path(self.text).parent != Path(other.text).parent:
            return found
        name = Path(other.text).name
        others = {one.path.with_name(_filled(name, one._asdict())) for one in found}
        return [one for one in found if one.path not in others]


def _names_of(sequence: str) -> tuple[str, ...]:
    """What the folder of a sequence may be called: 01, or 1."""
    return (sequence, sequence[1]) if re.fullmatch("0[0-9]", sequence) else (sequence,)


def _filled(text: str, known: Mapping[str, object]) -> str:
    """The pattern with the fields that are known filled in."""
    return FIELD.sub(lambda field: str(known.get(field[1], field[0])), text)


def _fitting(
    folder: Path, parts: tuple[str, ...], known: dict[str, str], hidden: list[Path]
) -> Iterator[tuple[dict[str, str], Path]]:
    """Fields and path of all that fits the parts of a pattern below a folder, in the order of names."""
    if not parts:
        yield known, folder
        return
    part = _filled(parts[0], known)
    if not FIELD.search(part):
        if len(parts) > 1 or is_there(folder / part):
            yield from _fitting(folder / part, parts[1:], known, hidden)
        return
    expression = path_expression(part)
    for name in sorted(names_in(folder) or ()):
        match = expression.fullmatch(name)
        if name.startswith(HIDDEN) or (match and not all(map(is_name, match.groupdict().values()))):
            hidden.append(folder / name)
        elif match:
            yield from _fitting(folder / name, parts[1:], known | match.groupdict(), hidden)


def path_expression(pattern: str) -> re.Pattern[str]:
    """What fits a pattern, or a part of one; a field that comes again must say the same."""
    seen: set[str] = set()

    def group(name: str) -> str:
        again = name in seen
        seen.add(name)
        return f"(?P={name})" if again else f"(?P<{name}>[^/]+)"

    # The pieces between fields have even numbers, the names of fields odd ones.
    pieces = FIELD.split(pattern)
    return re.compile("".join(group(piece) if odd % 2 else re.escape(piece) for odd, piece in enumerate(pieces)))
