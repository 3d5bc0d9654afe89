"""JSON that may come from somebody else: bounded before anything is made of it."""

import json
from math import isfinite
from typing import Any

LONGEST_DOCUMENT = 4_000_000
"""Bytes. A manifest has some ten thousand, the metadata of a scan file some twenty thousand."""

DEEPEST_NESTING = 100
"""Levels. Every merge of merged stores adds three to the provenance of a manifest."""


def parse_json(data: bytes | memoryview) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is too long, nests too deeply, holds NaN or infinity, or is not JSON.
    """
    if len(data) > LONGEST_DOCUMENT:
        raise ValueError(f"{len(data)} bytes of JSON; at most {LONGEST_DOCUMENT} are read")
    try:
        value = json.loads(bytes(data), parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nests too deeply") from error
    level, depth = [value], 0
    while level:
        if depth > DEEPEST_NESTING:
            raise ValueError(f"nests more than {DEEPEST_NESTING} levels deep")
        containers = (part for part in level if isinstance(part, dict | list))
        level = [child for part in containers for child in (part.values() if isinstance(part, dict) else part)]
        depth += 1
    return value


def _finite(text: str) -> float:
    """The number, which JSON may write as large as `1e999`; a ValueError if it is infinite or NaN."""
    if not isfinite(float(text)):
        raise ValueError(f"{text} is not a number")
    return float(text)
