"""JSON that may come from somebody else: bounded before anything is made of it."""

import json
from typing import Any, NoReturn

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
        value = json.loads(bytes(data), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nests too deeply") from error
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        if depth == DEEPEST_NESTING:
            raise ValueError(f"nests more than {DEEPEST_NESTING} levels deep")
        children = (child for part in level for child in (part.values() if isinstance(part, dict) else part))
        level = [child for child in children if isinstance(child, dict | list)]
        depth += 1
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
