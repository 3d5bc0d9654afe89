"""A hash inside the files that are written, so that a flipped byte is noticed when they are read.

A PyTorch archive is a zip: the hash is its comment, which other programs pass over. PyTorch itself checks nothing while
reading, not even the zip's own checksums; they are checked here for every archive, whoever wrote it. A safetensors file
holds the hash among its metadata.
"""

import hashlib
import io
import json
import struct
import zipfile

import torch
from safetensors.torch import save

from common.base.weights_hash import weights_hash

LABEL = b"sha256:"
COMMENT_BYTES = len(LABEL) + 2 * hashlib.sha256().digest_size
LENGTH = struct.Struct("<H")
"""Of the comment: the last two bytes of a zip without one."""

END_RECORD_BYTES = 22
"""Of the end of a zip without a comment."""

METADATA_KEY = "sha256"


class ContentError(ValueError):
    """What a file holds is not what was written."""


def sealed_archive(archive: bytes) -> bytes:
    """A zip without a comment, with the hash of its bytes as comment."""
    body = archive[: -LENGTH.size]
    if archive[-END_RECORD_BYTES:][:4] != b"PK\x05\x06" or archive[-LENGTH.size :] != LENGTH.pack(0):
        raise ContentError("not a zip without a comment")
    return body + LENGTH.pack(COMMENT_BYTES) + _comment(body)


def check_archive(archive: bytes) -> bool:
    """Check a zip by its own hash, where it has one, and by its members' checksums; returns whether it has a hash.

    Raises:
        ContentError: something does not fit.
    """
    comment = archive[-COMMENT_BYTES:]
    sealed = comment.startswith(LABEL)
    if sealed and comment != _comment(memoryview(archive)[: -COMMENT_BYTES - LENGTH.size]):
        raise ContentError("its bytes do not match the hash that was kept with them")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            if sum(member.file_size for member in members.infolist()) > len(archive):
                raise ContentError("its members claim to be larger than the file")
            if (bad := members.testzip()) is not None:
                raise ContentError(f"the checksum of {bad!r} does not fit")
    except ContentError:
        raise
    except Exception as error:  # a damaged zip breaks its reader in a dozen ways
        raise ContentError(f"not a whole zip: {error}") from error
    return sealed


def sealed_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """Tensors as a safetensors file that holds their hash."""
    return save(tensors, metadata={METADATA_KEY: weights_hash(tensors)})


def check_safetensors(data: bytes, tensors: dict[str, torch.Tensor]) -> bool:
    """Check the tensors of a safetensors file by the hash in it, where it has one; returns whether it has one.

    Raises:
        ContentError: it does not fit.
    """
    size = int.from_bytes(data[:8], "little")
    written = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(METADATA_KEY)
    if written is not None and written != weights_hash(tensors):
        raise ContentError("its tensors do not match the hash that was kept with them")
    return written is not None


def _comment(data: bytes | memoryview) -> bytes:
    return LABEL + hashlib.sha256(data).hexdigest().encode()
