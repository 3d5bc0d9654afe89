"""JSON objects that carry a checksum of themselves, so that a changed digit is not taken for another number."""

import json
import zlib
from typing import Any

CHECKSUM = "crc32"


def with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """The same entries, and their CRC-32 last."""
    return {**values, CHECKSUM: checksum(values)}


def without_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """The entries without their checksum, which older objects do not have; a ValueError if it does not match."""
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if len(rest) < len(values) and values[CHECKSUM] != checksum(rest):
        raise ValueError("does not match its checksum")
    return rest


def checksum(values: dict[str, Any]) -> str:
    """CRC-32 of a JSON object, whatever the order of its entries."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
