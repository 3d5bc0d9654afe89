"""What a file is by its first bytes, whatever its name says."""

import io
import zipfile
from typing import NamedTuple

SAFETENSORS_HEADER = 100_000_000
"""Bytes of the largest header that the format allows."""

LOOKED_AT = 4096
PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))


class FileKind(NamedTuple):
    """What a file is, and the next step where a checkpoint was expected; empty for kinds that can be loaded."""

    what: str
    next_step: str = ""


ARCHIVE = FileKind("a PyTorch archive")
SAFETENSORS = FileKind("a safetensors file")
UNKNOWN = FileKind("of no kind that this program knows")

DOWNLOAD_AGAIN = "Download the checkpoint again and look at what the server sent."
UNPACK = "Unpack it and name the checkpoint in it."
SAVE_WEIGHTS = "Open it where it was made and save model.state_dict() alone, as .pt or .safetensors."

MAGIC = (
    (b"version https://git-lfs", FileKind("a git-lfs pointer, not the file itself", "Fetch it with: git lfs pull")),
    (b"/annex/objects/", FileKind("a git-annex pointer, not the file itself", "Fetch it with: git annex get")),
    (b"\x93NUMPY", FileKind("a NumPy array", SAVE_WEIGHTS)),
    (b"\x89HDF", FileKind("an HDF5 file", SAVE_WEIGHTS)),
    (b"\x1f\x8b", FileKind("packed by gzip", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", UNPACK)),
    (b"Rar!", FileKind("a rar archive", UNPACK)),
    (b"\xfd7zXZ", FileKind("packed by xz", UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("packed by zstd", UNPACK)),
    (b"BZh", FileKind("packed by bzip2", UNPACK)),
    (b"%PDF", FileKind("a PDF document", DOWNLOAD_AGAIN)),
)
PAGE = FileKind("a web page (HTML), as a server sends instead of a file that needs a login or a click", DOWNLOAD_AGAIN)


def kind_of(data: bytes) -> FileKind:
    """The kind of a file from its content."""
    if not data:
        return FileKind("empty (0 bytes)", "Copy or download it again.")
    if data.startswith(b"PK\x03\x04"):
        return _kind_of_zip(data)
    if data.startswith(PICKLES):
        return FileKind("a pickle, such as PyTorch before 1.6 wrote")
    for magic, kind in MAGIC:
        if data.startswith(magic):
            return kind
    if data[257:262] == b"ustar":
        return FileKind("a tar archive", UNPACK)
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= SAFETENSORS_HEADER:
        return SAFETENSORS
    start = data[:LOOKED_AT].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return PAGE
    if _is_text(data[:LOOKED_AT]):
        return FileKind("plain text", "Check the path, or download the checkpoint again.")
    return UNKNOWN


def _kind_of_zip(data: bytes) -> FileKind:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # damaged: its reader says how
        return ARCHIVE
    if "constants.pkl" in names:
        return FileKind("a TorchScript program, which holds code", SAVE_WEIGHTS)
    return ARCHIVE if "data.pkl" in names else FileKind("a zip archive that PyTorch did not write", UNPACK)


def _is_text(start: bytes) -> bool:
    """Whether the first bytes of a file are printable UTF-8, of which the last letter may be cut off."""
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return False
        text = start[: error.start].decode()
    return all(letter.isprintable() or letter.isspace() for letter in text)
