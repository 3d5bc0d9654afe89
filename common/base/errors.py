"""Errors that a user can act on: each says what is wrong, where, and the next step."""

from typing import Any

import click

from common.base.text import printable_lines


class PolarDistillError(click.ClickException):
    """Base of all expected failures; commands print its message without a traceback and exit with status 1.

    A message may quote names and values of somebody else's file: control characters in it are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Its message alone travels to other processes: a subclass of somebody's own may take other arguments."""
        return _arrived, (type(self), self.message)


def _arrived(kind: type[PolarDistillError], message: str) -> PolarDistillError:
    error = kind.__new__(kind)
    PolarDistillError.__init__(error, message)
    return error


class DataError(PolarDistillError):
    """A scan, a label file, a sequence or a label id is not what the dataset layout promises."""


class SettingsError(PolarDistillError):
    """A setting is unknown, ill-typed or contradicts another one."""


class CheckpointError(PolarDistillError):
    """A checkpoint does not fit the model that should load it, or cannot be read safely."""


class StoreError(PolarDistillError):
    """A target store is damaged, incomplete, or was made by something else than what the caller expects."""


class TrainingError(PolarDistillError):
    """Training or a forward pass produced something that must not be used, such as a non-finite value."""
