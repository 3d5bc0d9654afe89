"""`SHA256SUMS` of an exported folder: a hash of each file, in the form that `sha256sum --check SHA256SUMS` reads."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from common.base.errors import CheckpointError

SUMS_FILE = "SHA256SUMS"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, without: str) -> None:
    """Write the hashes of all files of a folder but one, which people may edit."""
    names = sorted(path.name for path in folder.iterdir() if path.name != without)
    (folder / SUMS_FILE).write_text("".join(f"{file_hash(folder / name)}  {name}\n" for name in names))


def check_sums(folder: Path, suffixes: Iterable[str]) -> None:
    """Refuse files with these suffixes that are not as `export` wrote them; a run's folder, without hashes, passes.

    Raises:
        CheckpointError: one has changed, or any file that `export` wrote is missing; names it.
    """
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        path = folder / Path(name).name
        if not path.is_file():
            problem = "is missing"
        elif path.suffix in suffixes and file_hash(path) != expected:
            problem = f"is not as export wrote it ({SUMS_FILE})"
        else:
            continue
        raise CheckpointError(f"{path}: {problem}. Write the folder again with export.")
