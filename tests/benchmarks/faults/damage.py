"""Bytes spoilt as disks, networks and hands spoil them."""

from collections.abc import Callable

import numpy as np

TRIES = 100
Damage = Callable[[bytes, bytes, np.random.Generator], bytes]


def flip_a_bit(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One bit somewhere."""
    return _flipped(data, int(generator.integers(len(data))), 1 << int(generator.integers(8)))


def flip_in_directory(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One bit in the last tenth of the file, where zip archives keep their directory."""
    start = len(data) - max(1, len(data) // 10)
    return _flipped(data, int(generator.integers(start, len(data))), 1 << int(generator.integers(8)))


def flip_in_head(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One bit in the first 64 bytes."""
    return _flipped(data, int(generator.integers(min(64, len(data)))), 1 << int(generator.integers(8)))


def overwrite(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Up to 64 bytes replaced by chance."""
    start, noise = int(generator.integers(len(data))), generator.bytes(int(generator.integers(1, 64)))
    return (data[:start] + noise + data[start + len(noise) :])[: len(data)]


def blank_sector(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """512 bytes of zeros, as after a power loss."""
    start = int(generator.integers(len(data))) // 512 * 512
    size = len(data[start : start + 512])
    return data[:start] + bytes(size) + data[start + size :]


def truncate(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Cut off anywhere."""
    return data[: int(generator.integers(1, len(data)))]


def empty(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Nothing left."""
    return b""


def swap(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """The bytes of another file of the same sort."""
    return other


def wrong_magic(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """The first four bytes of another format."""
    return [b"\x1f\x8b\x08\x00", b"<!DO", b"PK\x05\x06", b"\x89PNG"][int(generator.integers(4))] + data[4:]


def shift(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes come in between."""
    start = int(generator.integers(len(data)))
    return data[:start] + generator.bytes(int(generator.integers(1, 16))) + data[start:]


def drop(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Some bytes go missing."""
    start = int(generator.integers(len(data)))
    return data[:start] + data[start + int(generator.integers(1, 16)) :]


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    truncate,
    empty,
    swap,
    wrong_magic,
    flip_in_directory,
    overwrite,
    blank_sector,
    flip_in_head,
    shift,
    drop,
    flip_a_bit,
)


def damaged(data: bytes, other: bytes, seed: int, generator: np.random.Generator) -> tuple[bytes, str]:
    """Spoilt bytes, never the same as before, and what was done; the kind of damage goes round with the seed.

    Raises:
        RuntimeError: they stay the same, however often it is tried.
    """
    damage = DAMAGES[seed % len(DAMAGES)]
    for _ in range(TRIES):
        spoilt = damage(data, other, generator)
        if spoilt != data:
            return spoilt, damage.__name__.replace("_", " ")
    raise RuntimeError(f"{damage.__name__} leaves these bytes as they are")


def _flipped(data: bytes, place: int, mask: int) -> bytes:
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]
