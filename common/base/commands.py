"""Commands that say in one line what the disk did not do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from common.base.errors import PolarDistillError
from common.base.files import next_step
from common.base.text import printable


class Command(click.Command):
    """A command whose errors of the disk are reported without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run it."""
        with disk_errors_reported():
            return super().invoke(context)


@contextmanager
def disk_errors_reported() -> Iterator[None]:
    """An OSError becomes a PolarDistillError: which file, what happened, what to do. A closed pipe is left to click."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        where = f"{printable(str(error.filename))}: " if error.filename is not None else ""
        what = error.strerror or str(error) or type(error).__name__
        raise PolarDistillError(f"{where}{what}. {next_step(error)}, then run the command again.") from error
