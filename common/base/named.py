"""What a setting names: `polarnet` is the file of that name in its room, `my_package.my_file:MyStudent` your own."""

import importlib
import importlib.util
import inspect
import pkgutil
from contextlib import suppress
from types import ModuleType
from typing import TypeVar

from common.base.errors import SettingsError

Kind = TypeVar("Kind")


def named_class(name: str, room: str, kind: type[Kind], what: str) -> type[Kind]:
    """The class that a setting names.

    A room is a package in which each file holds one subclass of `kind` whose attribute `name` is the file's own name. A
    new dataset, teacher, student or loss is one more such file, or a class anywhere that Python can import.

    Args:
        name: a file of the room, or `package.module:Class`.
        room: dotted name of the package.
        kind: what the class must be a subclass of.
        what: the kind of thing, for messages: `student`.

    Raises:
        SettingsError: nothing is called so, it cannot be imported, or it is not such a class.
    """
    own_module, colon, own_class = name.partition(":")
    if colon and all(part.isidentifier() for part in own_module.split(".")):
        found = getattr(import_named(own_module, name, what), own_class, None)
        if not (inspect.isclass(found) and issubclass(found, kind)):
            raise SettingsError(
                f"{what} '{name}': {own_module} has no class {own_class} that is a {kind.__module__}.{kind.__name__}"
            )
        return found
    if name.isidentifier() and importlib.util.find_spec(f"{room}.{name}") is not None:
        inside = class_called(import_named(f"{room}.{name}", name, what), name, kind)
        if inside is not None:
            return inside
    raise unknown(name, room, kind, what)


def import_named(module: str, name: str, what: str) -> ModuleType:
    """The module that the setting `name` of a `what` needs; a SettingsError says why it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{what} '{name}': {module} cannot be imported ({error}). Run from the folder that holds it, or install it."
        ) from error


def unknown(name: str, room: str, kind: type, what: str) -> SettingsError:
    """The error for a name that no file of a room has; a file that cannot be imported here is left out of the list."""
    names = []
    for entry in pkgutil.iter_modules(importlib.import_module(room).__path__):
        with suppress(ImportError):
            if class_called(importlib.import_module(f"{room}.{entry.name}"), entry.name, kind) is not None:
                names.append(entry.name)
    return SettingsError(
        f"unknown {what} '{name}'; choose from {', '.join(names)}, or name your own class, package.module:Class"
    )


def class_called(module: ModuleType, name: str, kind: type[Kind]) -> type[Kind] | None:
    """The subclass of `kind` in a module whose own attribute `name` is `name`."""
    own = (value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, kind))
    return next((value for value in own if vars(value).get("name") == name), None)
