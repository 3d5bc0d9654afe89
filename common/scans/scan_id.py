"""Names of scans, checked: they become parts of paths in datasets, stores and predictions."""

from typing import NamedTuple

from common.base.errors import DataError

HIDDEN = "."
"""Begins the names of what is not part of a dataset."""
LONGEST_NAME = 200
"""Bytes of the name of a sequence or frame; file systems allow 255, and suffixes are added."""


class _SequenceAndFrame(NamedTuple):
    sequence: str
    frame: str


class ScanId(_SequenceAndFrame):
    """Names one scan of a dataset; prints as `00/000000`."""

    __slots__ = ()

    def __new__(cls, sequence: str, frame: str) -> "ScanId":
        """Check the names.

        Raises:
            DataError: one could lead out of the folder that it belongs to, or cannot be printed.
        """
        for what, name in (("sequence", sequence), ("frame", frame)):
            if not is_name(name):
                raise DataError(
                    f"{name!r} cannot be the name of a {what}: names of sequences and frames have no slash or "
                    "backslash, do not begin with a dot, and consist of printable characters. Rename or remove the "
                    "file or folder."
                )
        return super().__new__(cls, sequence, frame)

    def __str__(self) -> str:
        return f"{self.sequence}/{self.frame}"

    @classmethod
    def parse(cls, text: str) -> "ScanId":
        """The inverse of `str`.

        Raises:
            DataError: the text is not of the form `sequence/frame`.
        """
        sequence, slash, frame = text.partition("/")
        if not (sequence and slash and frame) or "/" in frame:
            raise DataError(f"'{text}' does not name a scan; write sequence/frame, for example 00/000000")
        return cls(sequence, frame)


def is_name(text: str) -> bool:
    """Whether a text may stand as one part of a path: printable, no separator, no leading dot, not too long."""
    if not text.isprintable() or text.startswith(HIDDEN) or "/" in text or "\\" in text:
        return False
    return 0 < len(text.encode()) <= LONGEST_NAME
