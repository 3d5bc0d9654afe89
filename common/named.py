"""What a setting names: `polarnet` is the file of that name in its room, `my_package.my_file:MyStudent` your own."""

import importlib
import inspect
import pkgutil
from types import ModuleType

from common.errors import SettingsError


def named_class(name: str, room: str, what: str) -> type:
    """The class that a setting names.

    A room is a package in which each file holds one class with an attribute `name` that is the file's own name. A new
    dataset, teacher, student or loss is one more such file, or a class anywhere that Python can import.

    Args:
        name: a file of the room, or `package.module:Class`.
        room: dotted name of the package.
        what: the kind of thing, for messages: `student`.

    Raises:
        SettingsError: nothing is called so, it cannot be imported, or it is not such a class.
    """
    own_module, colon, own_class = name.partition(":")
    if colon:
        found = getattr(import_named(own_module, name, what), own_class, None)
        if not (inspect.isclass(found) and isinstance(getattr(found, "name", None), str)):
            raise SettingsError(f"{what} '{name}': {own_module} has no class {own_class} with a `name`")
        return found
    known = names_in(room)
    if name not in known:
        raise SettingsError(
            f"unknown {what} '{name}'; choose from {', '.join(known)}, or name your own class, package.module:Class"
        )
    return class_called(import_named(f"{room}.{name}", name, what), name)  # type: ignore[return-value]


def names_in(room: str) -> list[str]:
    """Names that a room knows: its files that hold a class called like the file."""
    package = importlib.import_module(room)
    files = [entry.name for entry in pkgutil.iter_modules(package.__path__)]
    return [name for name in files if class_called(importlib.import_module(f"{room}.{name}"), name) is not None]


def class_called(module: ModuleType, name: str) -> type | None:
    """The class in a module whose attribute `name` is `name`."""
    own = (value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__)
    return next((value for value in own if getattr(value, "name", None) == name), None)


def import_named(module: str, name: str, what: str) -> ModuleType:
    """Import a module that a setting names.

    Raises:
        SettingsError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{what} '{name}': {module} cannot be imported ({error}). Run from the folder that holds it, or install it."
        ) from error
