"""Names of splits and sequences in settings, as people type them: `[train, 08, 10]`."""

from typing import Annotated

from pydantic import BeforeValidator

QUOTED = "put names in quotes, for example ['00', 'val']"


def sequence_name(value: object) -> str:
    """A name from what YAML read: text as it is, a number as the name of a folder (8 is 08).

    Raises:
        ValueError: it is neither, such as what YAML makes of `yes`, `1.5` or nothing.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"{value:02d}"
    raise ValueError(f"{value!r:.60} is no name of a split or a sequence; {QUOTED}")


def _names(values: object) -> list[str]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"a list of names is needed; {QUOTED}")
    return [sequence_name(value) for value in values]


def folder_name(name: str) -> str:
    """The folder of a sequence: numbers have two digits at least."""
    return name.zfill(2) if name.isdigit() else name


def _folders(values: object) -> list[str]:
    return [folder_name(name) for name in _names(values)]


Names = Annotated[list[str], BeforeValidator(_names)]
"""Splits and sequences."""

Sequences = Annotated[list[str], BeforeValidator(_folders)]
"""Sequences as folders are named; numbers have two digits at least."""
