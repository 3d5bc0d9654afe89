"""JSON of somebody else is refused before anything is made of it."""

import json

import pytest

from common.base.untrusted_json import DEEPEST_NESTING, LONGEST_DOCUMENT, parse_json


def test_what_json_can_say_is_read():
    values = {"a": [1, -2.5, 1e300, None, True, "text"], "b": {}, "path that is not UTF-8": "caf\udce9"}
    assert parse_json(json.dumps(values).encode()) == values
    assert parse_json(memoryview(b"[1]")) == [1]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_finite_number_is_refused(number):
    with pytest.raises(ValueError, match=f"{number} is not a number"):
        parse_json(f'{{"a": [{number}]}}'.encode())


def test_documents_are_bounded():
    with pytest.raises(ValueError, match="bytes of JSON"):
        parse_json(b" " * LONGEST_DOCUMENT + b"1")
    for levels in (DEEPEST_NESTING + 2, 100_000):
        with pytest.raises(ValueError, match="nests"):
            parse_json(b"[" * levels + b"]" * levels)
