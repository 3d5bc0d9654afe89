"""JSON of somebody else is refused before anything is made of it."""

import json

import pytest

from common.base.untrusted_json import LONGEST_DOCUMENT, parse_json


def test_what_json_can_say_is_read():
    values = {"a": [1, -2.5, 1e300, None, True, "text"], "b": {}}
    assert parse_json(json.dumps(values).encode()) == values
    assert parse_json(memoryview(b"[1]")) == [1]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="line 1"):
        parse_json(f'{{"a": [{number}]}}'.encode())


def test_documents_are_bounded():
    with pytest.raises(ValueError, match="bytes of JSON"):
        parse_json(b" " * LONGEST_DOCUMENT + b"1")
    for levels in (202, 100_000):
        with pytest.raises(ValueError, match="recursion limit"):
            parse_json(b"[" * levels + b"]" * levels)
