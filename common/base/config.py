"""Typed, strict settings: YAML files plus `key=value` overrides, checked by pydantic.

A YAML file may name another one to build on with `extends: other.yaml` (relative to itself, or one of the packaged
configs); its own keys win.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from common.base.config_files import find_config, known_configs
from common.base.errors import SettingsError
from common.base.files import write_atomically
from common.base.setting_problems import problem_lines
from common.base.text import printable_lines

MOST_VALUES = 100_000
"""In one file of settings, what stands there once and is referred to often counted each time."""

NOT_DECIMAL = re.compile(r"[-+]?0[0-9_]+|.*:.*")
SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no infinite number and no NaN.

    Attributes:
        config_folder: folder of `configs/` in which a file of such settings is found by its bare name; empty for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    config_folder: ClassVar[str] = ""


def load_settings(kind: type[SettingsT], path: str | Path | None, overrides: Iterable[str] = ()) -> SettingsT:
    """Read settings from a YAML file.

    Args:
        kind: the settings class.
        path: YAML file; where it is looked up says `config_files.find_config`. None for the defaults of the class.
        overrides: `key=value` with dots for nested keys (`optimiser.learning_rate=1e-3`); values are YAML.

    Raises:
        SettingsError: the file cannot be read, or a key is unknown, missing or ill-typed. Names the file, the key and,
            for an unknown key, the nearest known one.
    """
    if path is None:
        return parse_settings(kind, overridden({}, overrides), "--set")
    found = find_config(path, kind.config_folder)
    if found is None:
        known = known_configs(kind.config_folder) if kind.config_folder else []
        raise SettingsError(f"{path}: no such file." + (f" Packaged configs: {', '.join(known)}." if known else ""))
    folders: list[Path] = []
    values, overrides = read_yaml(found, folders=folders), list(overrides)
    try:
        overridden(values, overrides)
    except SettingsError as error:
        raise SettingsError(f"{found}: {error.message}") from error
    return parse_settings(kind, values, f"{found}, changed by --set" if overrides else str(found), folders)


def parse_settings(
    kind: type[SettingsT], values: dict[str, Any], source: str, beside: Iterable[Path] = ()
) -> SettingsT:
    """Check a plain dictionary against a settings class.

    Files that the settings name are looked up in the folders of `beside` as well.

    Raises:
        SettingsError: it does not fit; names the source, each key and, for an unknown key, the nearest known one.
    """
    try:
        return kind.model_validate(values, context={"beside": tuple(beside)})
    except ValidationError as error:
        lines = problem_lines(kind, error, values)
        raise SettingsError(f"{source}: these settings cannot be used:\n{lines}") from error


def load_json(kind: type[SettingsT], path: Path) -> SettingsT:
    """Read what the project wrote as JSON: every key is there, and every value of exactly its type.

    Raises:
        SettingsError: it cannot be read or does not fit; names the file and each key.
    """
    try:
        return kind.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: these values cannot be used:\n{problem_lines(kind, error)}") from error


def read_yaml(path: str | Path, children: tuple[Path, ...] = (), folders: list[Path] | None = None) -> dict[str, Any]:
    """A YAML file as a dictionary, with `extends` followed; `folders` gets the folder of each file that was read.

    Raises:
        SettingsError: it cannot be read, is no settings file, or extends itself.
    """
    path = Path(path)
    if folders is not None:
        folders.append(path.parent)
    if path.resolve() in children:
        raise SettingsError(f"{path}: extends itself through {', '.join(map(str, children))}")
    try:
        values = parsed(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path}: not text in UTF-8 (byte {error.start}). Save the file as UTF-8, or check the path."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: holds {type(values).__name__}; settings are 'key: value' lines.")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise SettingsError(f"{path}: extends names {parent!r}; write the name of one YAML file")
    base = path.parent / parent
    found = base if base.exists() else find_config(parent)
    return _merge(read_yaml(found or base, (*children, path.resolve()), folders), values)


def write_yaml(settings: Settings, path: str | Path) -> None:
    """Write settings, whole or not at all, so that `load_settings` reads them back."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(Path(path), text.encode())


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def overridden(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The same dictionary, changed in place by each `key=value`, see `load_settings`.

    Raises:
        SettingsError: one is not of that form, or the key has no place.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"'{override}' is not of the form key=value")
        value, place = parsed(text, f"'{override}'"), values
        *parents, last = key.strip().split(".")
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise SettingsError(f"'{override}': '{parent}' is a single value, it has no keys below it")
        place[last] = value
    return values


def parsed(text: str, source: str) -> Any:
    """What YAML text holds; a SettingsError names its `source` if it is not valid."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
        check_size(value)
        return value
    except RecursionError as error:
        raise SettingsError(
            f"{source}: nests more deeply than any settings do. Check that it is the right file."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SettingsError(f"{source}: not valid YAML: {printable_lines(str(error))}") from error


def check_size(value: Any) -> None:
    """Raise a ValueError for values that hold themselves, or so often the same that copies would take all memory."""
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        children = list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else []
        count += len(children)
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values, or one that holds itself")
        waiting += children


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, and reads numbers as people mean them.

    YAML 1.1 reads `1e-3` as text, `010` as 8 and `1:30` as 90. Here the first is a number and the others are text; a
    setting that is a number takes the second as 10 and refuses the third.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As PyYAML's, which takes the last of equal keys; YAML asks for different ones."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r:.100} is there twice; remove one", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return node

    def integer(self, node: yaml.ScalarNode) -> int | str:
        """A number; the text where YAML 1.1 takes it for octal or sexagesimal."""
        text = str(node.value)
        return text if NOT_DECIMAL.fullmatch(text) else self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def in_one_line(error: Exception) -> str:
    """What an error of a library says, in one line; of one of pydantic's, what is wrong where, without addresses."""
    if isinstance(error, ValidationError):
        return "; ".join(": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()[:3])
    return " ".join(str(error).split())
