"""Options that commands of both stages have: name, default and help of each in one place."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

DEFAULT_CACHE = "cache/semantic_kitti"
TEACHER_CONFIG = Path("configs/teachers/cylinder3d.yaml")

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


class PathType(click.Path):
    """A path. Empty text, as of a variable that is not set, is none: it would be the working folder."""

    def convert(
        self, value: str | os.PathLike[str], parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """The path."""
        if not os.fspath(value):
            self.fail("an empty path; perhaps a variable of the shell is not set", parameter, context)
        return super().convert(value, parameter, context)


path_type = PathType(path_type=Path)

DATA = "Folder of the dataset; of SemanticKITTI, the one that holds sequences/."

data_option = click.option("--data", type=path_type, required=True, help=DATA)
optional_data_option = click.option("--data", type=path_type, help=DATA)
teacher_option = click.option(
    "--teacher",
    type=path_type,
    required=True,
    help="Cylinder3D checkpoint in the published layout (.pt or .safetensors).",
)


def existing_paths(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Path, ...]:
    """Paths, of which one text may hold several with spaces between, as `make` passes them on."""

    def split(text: str) -> list[Path]:
        parts = [Path(part) for part in text.split()]
        several = len(parts) > 1 and not Path(text).exists() and all(part.exists() for part in parts)
        return parts if several else [path_type.convert(text, parameter, context)]

    return tuple(path for text in texts for path in split(text))


def teachers_option(required: bool, help: str) -> Decorator:
    """`--teacher` of commands that take several."""
    return click.option(
        "--teacher", "teachers", multiple=True, required=required, callback=existing_paths, metavar="PATH", help=help
    )


cache_option = click.option(
    "--cache",
    default=DEFAULT_CACHE,
    help="Target store: a folder, a .zip archive to read from, or a URL such as s3://bucket/prefix.",
)
config_option = click.option(
    "--config",
    type=path_type,
    default=TEACHER_CONFIG,
    help="Settings of the dump (splits, grid, layers, encoding, views): a YAML file, or a name in configs/teachers/.",
)
device_option = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
resume_option = click.option("--resume", is_flag=True, help="Go on with the run in its folder.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)


def gathered(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Options that reach a command as one argument.

    Args:
        name: of the argument.
        make: what makes it; each of its parameters is called as the option that it is the value of.
        options: listed by --help in this order.
    """
    own = list(inspect.signature(make).parameters)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(*positional: Any, **values: Any) -> Any:
            made = make(**{key: values.pop(key) for key in own})
            return command(*positional, **values, **{name: made})

        decorated: Command = call
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
