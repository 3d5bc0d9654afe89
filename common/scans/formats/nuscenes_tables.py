"""Lidar key frames of a version of nuScenes, from its tables, and a cache of them.

`sample_data.json` of the whole dataset has 2.6 million records in 1.2 GB. Only those of key frames of the lidar are
parsed, block by block; what they say is kept in the user's cache folder for the next time.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from common.base.checked_json import with_checksum, without_checksum
from common.base.errors import DataError
from common.base.files import write_atomically
from common.scans.scan_id import ScanId, is_name

LIDAR = "samples/LIDAR_TOP/"
"""Begins the file names of all key frames of the lidar."""

TABLES = ("scene", "sample", "sample_data")
BLOCK = 32_000_000
"""Bytes of `sample_data.json` that are looked through at once."""

CACHE_FORMAT = 1


class KeyFrame(NamedTuple):
    """A lidar scan: the token of its record in `sample_data`, and the name of its file in `samples/LIDAR_TOP`."""

    token: str
    file: str


Scenes = dict[str, dict[str, KeyFrame]]
"""Key frames by the name of the scene (`scene-0061`) and the frame: its time in microseconds, 16 digits."""


def key_frames(folder: Path) -> Scenes:
    """The lidar key frames of a version, from the cache or from the tables in a folder such as `nuscenes/v1.0-mini`.

    Raises:
        DataError: a table is missing, truncated or damaged, or they do not belong together.
    """
    stamp, cache = _stamp(folder), None
    # Whatever is wrong with a cache, or with the place for it, the tables are there.
    with suppress(OSError, RuntimeError):
        cache = _cache_file(folder)
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            kept = without_checksum(json.loads(cache.read_bytes()))
            if kept["stamp"] == stamp:
                return {
                    scene: {frame: KeyFrame(*found) for frame, found in frames.items()}
                    for scene, frames in kept["scenes"].items()
                }
    scenes = read_tables(folder)
    if cache is not None:
        with suppress(OSError):
            write_atomically(cache, json.dumps(with_checksum({"stamp": stamp, "scenes": scenes})).encode())
    return scenes


def read_tables(folder: Path) -> Scenes:
    """The lidar key frames of a version from its tables, see `key_frames`."""
    tables = {name: folder / f"{name}.json" for name in TABLES}
    with _damage(tables["scene"]):
        names = {record["token"]: record["name"] for record in _records(tables["scene"])}
    with _damage(tables["sample"]):
        scene_of = {record["token"]: names[record["scene_token"]] for record in _records(tables["sample"])}
    scenes: Scenes = {name: {} for name in sorted(names.values())}
    with _damage(tables["sample_data"]):
        for record in _lidar_records(tables["sample_data"]):
            if record["is_key_frame"]:
                scan = ScanId(scene_of.pop(record["sample_token"]), f"{int(record['timestamp']):016d}")
                if scan.frame in scenes[scan.sequence]:
                    raise ValueError(f"two lidar key frames of {scan}")
                scenes[scan.sequence][scan.frame] = _key_frame(record)
    if scene_of:
        raise DataError(
            f"{tables['sample_data']}: has no lidar key frame of {len(scene_of):,} samples of {tables['sample'].name}; "
            f"the first is {next(iter(scene_of))}. The tables are damaged or of two versions: extract them again."
        )
    return {name: dict(sorted(frames.items())) for name, frames in scenes.items()}


def _records(path: Path) -> list[dict[str, Any]]:
    records = json.loads(path.read_bytes())
    if not (isinstance(records, list) and records):
        raise ValueError("no list of records")
    return records


def _key_frame(record: dict[str, Any]) -> KeyFrame:
    token, file = record["token"], record["filename"].removeprefix(LIDAR)
    if not (is_name(token) and is_name(file)):
        raise ValueError(f"{record['filename']!r:.100} of {token!r:.60} is no file of {LIDAR}")
    return KeyFrame(token, file)


def _lidar_records(path: Path) -> Iterator[dict[str, Any]]:
    """Records of `sample_data.json` with a file name in `LIDAR`; records have no objects in them."""
    mark, rest = f'"{LIDAR}'.encode(), b""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            block = rest + block
            end = block.rfind(b"}") + 1
            at = block.find(mark, 0, end)
            while at >= 0:
                stop = block.find(b"}", at) + 1
                yield json.loads(block[block.rfind(b"{", 0, at) : stop])
                at = block.find(mark, stop, end)
            rest = block[end:]
    if rest.strip() != b"]":
        raise ValueError("does not end as a list of records does")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a table is read becomes a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Extract the metadata of nuScenes there."
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: truncated or damaged ({type(error).__name__}: {error!s:.120}). Extract the metadata again."
        ) from error


def _stamp(folder: Path) -> dict[str, Any]:
    """What a cache was made from: format, folder, size and time of each table."""
    found = {}
    for name in TABLES:
        path = folder / f"{name}.json"
        with _damage(path):
            status = path.stat()
        found[name] = [status.st_size, status.st_mtime_ns]
    return {"format": CACHE_FORMAT, "folder": str(folder.resolve()), "tables": found}


def _cache_file(folder: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return base / "polar-distill" / f"nuscenes-{name}.json"
