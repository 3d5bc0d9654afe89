"""Errors of the disk, and of libraries that read other people's files, as errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.base.config import in_one_line
from common.base.errors import DataError, PolarDistillError


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file or folder is read names it and a next step.

    Raises:
        DataError: instead of what was raised. Libraries raise anything at all for a damaged file.
    """
    try:
        yield
    except PolarDistillError:
        raise
    except ImportError as error:
        raise DataError(
            f"{path}: {error.name or error} is needed to read it. pip install 'polar-distill[formats]', or convert it "
            "to .npy."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}). Check --data, the permissions and the download."
        ) from error
    except Exception as error:
        said = f"{type(error).__name__}: {in_one_line(error)}"
        raise DataError(
            f"{path}: cannot be read as {path.suffix or 'a ROS 2 bag'} ({said}). It is "
            "damaged, truncated or something else; restore it, or exclude it."
        ) from error
