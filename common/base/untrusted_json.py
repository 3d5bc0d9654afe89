"""JSON that may come from somebody else: bounded before anything is made of it."""

from typing import Any

from pydantic_core import from_json

LONGEST_DOCUMENT = 4_000_000
"""Bytes. A manifest has some ten thousand, the metadata of a scan file some twenty thousand."""


def parse_json(data: bytes | memoryview) -> Any:
    """The value of a JSON document. A number beyond all floats, such as 1e999, is infinite.

    Raises:
        ValueError: it is too long, nests 200 levels deep, says NaN or Infinity, or is not JSON.
    """
    if len(data) > LONGEST_DOCUMENT:
        raise ValueError(f"{len(data)} bytes of JSON; at most {LONGEST_DOCUMENT} are read")
    return from_json(bytes(data), allow_inf_nan=False)
