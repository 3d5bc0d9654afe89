"""Forged scan files: valid checksums around numbers, metadata and chunks that no honest program writes."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.faults import reading
from tests.benchmarks.faults.damaged_stores import foreign, named_by, reads_as
from tests.benchmarks.faults.forged_commands import LIMIT, NAME, TERMINAL, info, to_result, verify
from tests.benchmarks.faults.verdicts import Kind, Verdict, each, judge, nothing_changed
from tests.benchmarks.faults.workshop import Case
from tests.targets.store.forgery import members_of, with_chunk, with_metadata, with_numbers, zip_of

Numbers = Callable[[np.ndarray], np.ndarray]


def set_at(index: int, value: float) -> Numbers:
    """One row changed."""

    def change(numbers: np.ndarray) -> np.ndarray:
        changed = numbers.copy()
        changed[index] = value
        return changed

    return change


NUMBERS: dict[str, tuple[str, Numbers]] = {
    "NaN in logits": ("logits", set_at(3, np.nan)),
    "infinity in logits": ("logits", set_at(3, np.inf)),
    "NaN in features": ("up0e.pillar_features", set_at(0, np.nan)),
    "NaN in voxel features": ("down1c.voxel_features", set_at(0, np.nan)),
    "a voxel of index 4e9": ("voxels.16x12x8", set_at(-1, 4_000_000_000)),
    "a pillar of index 4e9": ("pillars.16x12", set_at(-1, 4_000_000_000)),
    "a pillar one beyond the grid": ("pillars.16x12", set_at(-1, 16 * 12)),
    "pillars unsorted": ("pillars.16x12", lambda numbers: numbers[::-1].copy()),
    "pillars repeated": ("pillars.8x6", lambda numbers: np.sort(np.append(numbers[:-1], numbers[0]))),
    "voxels unsorted": ("voxels.16x12x8", lambda numbers: numbers[::-1].copy()),
    "too few classes": ("logits", lambda numbers: numbers[:, :-1].copy()),
    "too many classes": ("logits", lambda numbers: np.hstack((numbers, numbers))),
    "other channels": ("down1c.pillar_features", lambda numbers: numbers[:, :-1].copy()),
    "no channels": ("down1c.pillar_features", lambda numbers: numbers[:, :0].copy()),
    "a row too few": ("up0e.pillar_features", lambda numbers: numbers[:-1].copy()),
    "a row too many": ("logits", lambda numbers: np.vstack((numbers, numbers[:1]))),
    "no rows": ("voxels.16x12x8", lambda numbers: numbers[:0].copy()),
    "another rank": ("pillars.16x12", lambda numbers: numbers[None].copy()),
}


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    """Another attribute of the group; `...` removes it."""

    def change(document: Any) -> None:
        if value is ...:
            del document["attributes"][name]
        else:
            document["attributes"][name] = value

    return change


def of_array(array: str, **changes: Any) -> Callable[[Any], None]:
    """Other metadata of one array."""
    return lambda document: document["consolidated_metadata"]["metadata"][array].update(changes)


def of_feature(name: str, **changes: Any) -> Callable[[Any], None]:
    """Another description of one array of features."""
    return lambda document: document["attributes"]["features"][name].update(changes)


METADATA: dict[str, Callable[[Any], None]] = {
    "no view": attribute("view", ...),
    "a view that is a list": attribute("view", [1, 2]),
    "a view rotated by a text": attribute("view", {"rotation": "far"}),
    "a view rotated without end": attribute("view", {"rotation": 1e400}),
    "a scan that is a number": attribute("scan", 7),
    "another scan": attribute("scan", "00/000000"),
    "a scan of terminal codes": attribute("scan", TERMINAL),
    "a view number that is a text": attribute("view_index", "0"),
    "a view number that is true": attribute("view_index", False),
    "no teacher": attribute("teacher_hash", ...),
    "another teacher": attribute("teacher_hash", "b" * 64),
    "no hash of the identity": attribute("identity_hash", ...),
    "a teacher of terminal codes": attribute("teacher_hash", TERMINAL),
    "a grid of texts": attribute("grid_shape", ["16", "12", "8"]),
    "a grid of zeros": attribute("grid_shape", [0, 0, 0]),
    "a grid of 1e12": attribute("grid_shape", [10**12, 10**12, 8]),
    "features that are a list": attribute("features", []),
    "features that are none": attribute("features", {}),
    "features that are a text": attribute("features", "logits"),
    "another encoding": of_feature("logits", encoding="int8_row"),
    "an unknown encoding": of_feature("logits", encoding=TERMINAL),
    "an encoding that is a list": of_feature("logits", encoding=[]),
    "a shape that is a number": of_feature("down1c.pillar_features", shape=3),
    "a shape of floats": of_feature("down1c.pillar_features", shape=[8.5, 6.0]),
    "a negative shape": of_feature("down1c.pillar_features", shape=[-8, -6]),
    "an array of 1e12 rows": of_array("logits", shape=[10**12, 20]),
    "an array of negative rows": of_array("logits", shape=[-1, 20]),
    "an array of another rank": of_array("logits", shape=[600]),
    "an array of a million axes": of_array("logits", shape=[1] * 1_000_000),
    "an array of texts": of_array("logits", data_type="string"),
    "an array of objects": of_array("logits", data_type={"name": "object"}),
    "an array of int64": of_array("logits", data_type="int64"),
    "uint32 read as int32": of_array("voxels.16x12x8", data_type="int32"),
    "unknown codecs": of_array("logits", codecs=[{"name": "../../evil"}]),
    "no codecs": of_array("logits", codecs=[]),
    "codecs that are a text": of_array("logits", codecs="zstd"),
    "a million codecs": of_array("logits", codecs=[{"name": "bytes"}] * 1_000_000),
    "metadata that is a list": lambda document: document["consolidated_metadata"].update(metadata=[]),
    "no consolidated metadata": lambda document: document.pop("consolidated_metadata"),
    "attributes that are a list": lambda document: document.update(attributes=[]),
    "another array beside": lambda document: document["consolidated_metadata"]["metadata"].update(more={"shape": [1]}),
}


def blosc(**fields: int) -> Callable[[bytes], bytes]:
    """Another Blosc header in front of the same bytes."""

    def change(chunk: bytes) -> bytes:
        names = ("version", "format", "flags", "typesize", "decoded", "blocksize", "encoded")
        values = dict(zip(names, struct.unpack("<BBBBiii", chunk[:16]), strict=True)) | fields
        return struct.pack("<BBBBiii", *values.values()) + chunk[16:]

    return change


CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "Blosc: more decoded bytes": blosc(decoded=2**31 - 1),
    "Blosc: fewer decoded bytes": blosc(decoded=8),
    "Blosc: negative decoded bytes": blosc(decoded=-1),
    "Blosc: more encoded bytes": blosc(encoded=2**31 - 1),
    "Blosc: 63,920 bytes from 20": lambda chunk: blosc(decoded=63_920, blocksize=63_920)(chunk[:20]),
    "Blosc: blocks of one byte": blosc(blocksize=1),
    "Blosc: blocks of nothing": blosc(blocksize=0),
    "Blosc: negative blocks": blosc(blocksize=-16),
    "Blosc: items of nothing": blosc(typesize=0),
    "Blosc: items of 255 bytes": blosc(typesize=255),
    "Blosc: all flags": blosc(flags=255),
    "Blosc: copied as it is": blosc(flags=2),
    "Blosc: another version": blosc(version=200),
    "Blosc: header alone": lambda chunk: chunk[:16],
    "Blosc: half a header": lambda chunk: chunk[:7],
    "Blosc: places of blocks beyond the end": lambda chunk: chunk[:16] + b"\xff\xff\xff\x7f" * 4 + chunk[32:],
    "Blosc: negative places of blocks": lambda chunk: chunk[:16] + b"\xf0\xff\xff\xff" * 4 + chunk[32:],
    "Blosc: noise": lambda chunk: chunk[:16] + bytes(range(256)) * (1 + len(chunk) // 256),
    "Blosc: nothing": lambda chunk: b"",
}

DOCUMENTS: dict[str, bytes] = {
    "JSON 100,000 deep": b'{"attributes":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "JSON of 50 MB": b'{"attributes": "' + b"x" * 50_000_000 + b'"}',
    "JSON that is a text": b'"scan file"',
    "a number of a million digits": b'{"attributes": ' + b"9" * 1_000_000 + b"}",
    "not UTF-8": b'{"attributes": "\xff\xfe"}',
}
SCAN_FILES = (*NUMBERS, *METADATA, *CHUNKS, *DOCUMENTS)


def forge(case: Case, how: str, kind: str) -> tuple[Path, str]:
    """A copy of a made-up store with one forged scan file; and the made-up store's name."""
    kind = "lz4" if how in CHUNKS else kind
    store = case.copy(kind, "store")
    path = store / NAME
    data = path.read_bytes()
    if how in NUMBERS:
        data = with_numbers(data, *NUMBERS[how])
    elif how in METADATA:
        data = with_metadata(data, METADATA[how])
    elif how in CHUNKS:
        data = with_chunk(data, "voxels.16x12x8", CHUNKS[how])
    else:
        data = zip_of(members_of(data) | {"zarr.json": DOCUMENTS[how]})
    path.write_bytes(data)
    return store, kind


def scan_file(words: Callable[[Case, Path], Sequence[object]]) -> Callable[[Case, str], Verdict]:
    """A store with a forged scan file, and a command."""

    def attack(case: Case, how: str) -> Verdict:
        store, kind = forge(case, how, "plain")
        result = case.folder / "result"
        ended = case.command(*words(case, store), limit=LIMIT)
        wrong = (lambda: foreign(case, result, kind)) if result.is_dir() else nothing_changed
        # Whoever accepts a forged file has to read from it what was honestly written; `info` reads no numbers.
        return judge(ended, how, named_by(NAME), lambda: None if words is info else reads_as(case, store, kind), wrong)

    return attack


def show_targets(case: Case, how: str) -> Verdict:
    """The command show-targets of the forged scan-view, against that of the honest one."""
    store, kind = forge(case, how, "plain")
    words = ("--scan", "00/000001", "--out")
    ended = case.command("show-targets", "--cache", store, *words, case.folder / "forged.npz", limit=LIMIT)

    def intact() -> bool:
        case.command("show-targets", "--cache", case.workshop.path(kind), *words, case.folder / "whole.npz")
        paths = [case.folder / "forged.npz", case.folder / "whole.npz"]
        left, right = case.prepared(lambda: [reading.npz_digest(path) for path in paths])
        return left == right

    return judge(ended, how, named_by(NAME), intact, nothing_changed)


KINDS: tuple[Kind, ...] = (
    each("forged scan file: verify", SCAN_FILES, scan_file(verify)),
    each("forged scan file: merge", SCAN_FILES, scan_file(to_result)),
    each("forged scan file: show-targets", SCAN_FILES, show_targets),
    each("forged scan file: info", (*METADATA, *DOCUMENTS), scan_file(info)),
)
