"""What is wrong with settings, in words for people who write them and know neither Python nor pydantic."""

import difflib
import re
import reprlib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from common.base.text import printable

LISTED = 20
SHOULD = re.compile(r"^\w+ should(?= (be|have) )")
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 120
"""Shows values of any size and depth in a few words."""

KINDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "written as {name: value}",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list, written as [a, b, c]",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list, written as [a, b, c]",
}
"""By pydantic's names of errors, what a value must be."""


def problem_lines(kind: type[BaseModel], error: ValidationError, values: Any = None) -> str:
    """Each problem in one line, indented: where, what is wrong, what stands there; of very many the first ones.

    `values` are what was checked, where that is known: parts of a place that only pydantic knows are left out then.
    """
    found = error.errors()
    problems = "\n".join(f"  {printable(_describe(kind, problem, values))}" for problem in found[:LISTED])
    return problems + (f"\n  and {len(found) - LISTED} more" if len(found) > LISTED else "")


def _describe(kind: type[BaseModel], problem: Any, values: Any) -> str:
    location = [str(part) for part in _keys(problem["loc"], values)]
    key, name, got = ".".join(location) or "settings", problem["type"], SHORT.repr(problem.get("input"))
    if name == "extra_forbidden":
        known = _fields_at(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        step = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(known)}"
        return f"{key}: unknown key; {step}"
    if name == "missing":
        return f"{key}: is missing (got {got})" if len(location) > 1 else f"{key}: is missing"
    if name in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"{key}: must have keys of its own: {', '.join(_fields_at(kind, location))} (got {got})"
    text = KINDS.get(name) and f"must be {KINDS[name]}"
    said = problem["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return f"{key}: {text or SHOULD.sub('must', said)} (got {got})"


def _keys(location: tuple[Any, ...], values: Any) -> list[Any]:
    """Of a place the keys alone: pydantic also puts into it which of several kinds of value it tried there."""
    keys: list[Any] = []
    for number, part in enumerate(location):
        held = _holds(values, part)
        # What is last may be what is missing; below what is no container nothing can be.
        may_be_missing = isinstance(values, dict | list | tuple) and number == len(location) - 1
        if values is None or held or may_be_missing:
            keys.append(part)
            values = values[part] if held else None
    return keys


def _holds(values: Any, part: Any) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list | tuple) and isinstance(part, int) and 0 <= part < len(values)


def _fields_at(kind: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the settings beside one that is `location` deep; keys that are no settings class's are passed over."""
    for part in location:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        nested = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
        kind = next((a for a in nested if issubclass(a, BaseModel)), kind)
    return list(kind.model_fields)
