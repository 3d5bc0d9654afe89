"""Opening large stores and indexing them, in a folder and on a server; used by bench_store.

    python -m tests.benchmarks.store_opening [--json] [--names 100000 --names 1000000] [--delay 0.1] [--moto 10000]

Names only, no targets: what is opened is the listing. In the folder they are links of one empty file for each sequence,
which costs a listing the same, since no file is looked at. The server is `listing_server`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from common.base.config_files import find_config
from common.scans.label_map import load_label_map
from common.scans.polar_grid import PolarGrid
from common.scans.scan_id import ScanId
from common.targets.store import StoreIdentity, TargetStore
from common.targets.store.manifest import MANIFEST
from common.targets.store.storage import FolderStorage
from tests.benchmarks.listing_server import BUCKET, FRAMES, made_up_names
from tests.golden.golden_files import REPOSITORY
from tests.targets.store.s3_server import environment, running_server

SEQUENCE_LENGTHS = (4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201)
"""Scans in sequences 00 to 10 of SemanticKITTI: 23,201."""

COUNTS = (100_000, 1_000_000)
DELAY = 0.1
"""Seconds that a page of a listing takes the server."""


def open_semantic_kitti(store: TargetStore, folder: Path) -> dict[str, float]:
    """Time and memory to open a store of 23,201 scans and index it, and the time of `info` on it."""
    large = FolderStorage(folder)
    large.write(MANIFEST, store.storage.read(MANIFEST))
    for sequence, length in enumerate(SEQUENCE_LENGTHS):
        sequence_folder = folder / "sequences" / f"{sequence:02d}"
        sequence_folder.mkdir(parents=True)
        for frame in range(length):
            for view in range(store.identity.views.count if frame % 100 == 0 else 1):
                (sequence_folder / f"{frame:06d}.v{view}.zarr.zip").write_bytes(b"small")
    # `info` looks into some files, so the first scans are real ones.
    scan, view = min(store.finished())
    for name, _ in list(large.sizes("sequences/00/00000")):
        large.write(name, store.storage.read(store.name(scan, view)))
    numbers = opened_apart(str(folder), sum(SEQUENCE_LENGTHS), "open_23201")
    command = [sys.executable, "-m", "polar_distill", "info", "--cache", str(folder)]
    start = time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    return {**numbers, "info_23201_s": time.perf_counter() - start}


def open_many(folder: Path, count: int) -> dict[str, float]:
    """Open a folder with so many scan files; it is removed again."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        write_manifest(Path(temporary))
        for row, name in enumerate(made_up_names(count)):
            path = f"{temporary}/{name}"
            if row % FRAMES == 0:
                os.makedirs(os.path.dirname(path))
                first = path
                Path(path).touch()
            else:
                os.link(first, path)
        return opened_apart(temporary, count, f"open_{label(count)}")


def open_served(folder: Path, count: int, delay: float) -> dict[str, float]:
    """Open a store of so many scan files on a server that needs `delay` seconds for each page of a listing."""
    write_manifest(folder)
    command = [sys.executable, "-m", "tests.benchmarks.listing_server", str(folder / MANIFEST), str(count)]
    server = subprocess.Popen([*command, "--delay", str(delay)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        return opened_apart(f"s3://{BUCKET}", count, f"open_served_{label(count)}", environment(endpoint))
    finally:
        server.terminate()
        server.wait()


def open_on_moto(count: int) -> dict[str, float]:
    """Open a store of so many empty objects on the S3 server that the tests use."""
    with running_server() as endpoint, variables(environment(endpoint)):
        url = f"s3://{BUCKET}/cache"
        store = TargetStore.create_or_resume(url, made_up_identity(), {})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.storage.write(name, b""), made_up_names(count)))
        return opened_apart(url, count, f"open_moto_{label(count)}", environment(endpoint))


def label(count: int) -> str:
    """For example `1e6`."""
    return f"{count:.0e}".replace("e+0", "e")


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """With some environment variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def made_up_identity() -> StoreIdentity:
    """Of a store of logits alone."""
    dataset = find_config("configs/datasets/semantic_kitti.yaml")
    assert dataset is not None
    return StoreIdentity.of("made up", PolarGrid.named("polarnet"), load_label_map(dataset))


def write_manifest(folder: Path) -> None:
    """Make a folder an empty store."""
    TargetStore.create_or_resume(folder, made_up_identity(), {})


def opened_apart(location: str, scans: int, name: str, more: dict[str, str] | None = None) -> dict[str, float]:
    """Open and index a store in a process of its own: `name`_s seconds, `name`_mb at the peak."""
    command = [sys.executable, "-m", "tests.benchmarks.store_opening", "--open", location]
    done = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **(more or {})}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["scans"] != scans:
        raise SystemExit(f"{location}: found {found['scans']} scans instead of {scans}")
    return {f"{name}_s": found["seconds"], f"{name}_mb": found["mb"]}


def open_here(location: str) -> dict[str, float]:
    """Open a store and index it: the time, and the memory of a second, traced, pass."""
    start = time.perf_counter()
    scans = len(views_by_scan(location))
    seconds = time.perf_counter() - start
    tracemalloc.start()
    views_by_scan(location)
    _, peak = tracemalloc.get_traced_memory()
    return {"scans": scans, "seconds": seconds, "mb": peak / 1e6}


def views_by_scan(location: str) -> dict[ScanId, int]:
    """The training index: every scan with the number of its views."""
    views: dict[ScanId, int] = {}
    for scan, _ in TargetStore.open(location).finished():
        views[scan] = views.get(scan, 0) + 1
    return views


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--names", multiple=True, default=COUNTS, show_default=True, help="Scan files; repeatable.")
@click.option("--delay", default=DELAY, show_default=True, help="Seconds that a page of 1000 names takes the server.")
@click.option("--moto", default=0, help="Also so many names on moto, which is slow: 10000 take a minute.")
@click.option("--open", "location", help="Open this store, print time and memory, and end.")
def main(as_json: bool, names: tuple[int, ...], delay: float, moto: int, location: str | None) -> None:
    """Measure opening."""
    if location is not None:
        click.echo(json.dumps(open_here(location)))
        return
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in names:
            numbers |= open_many(Path(temporary), count)
            numbers |= open_served(Path(temporary), count, delay)
    if moto:
        numbers |= open_on_moto(moto)
    click.echo("\n".join(f"{name:24} {value:10.2f}" for name, value in numbers.items()))
    if as_json:
        click.echo(json.dumps(numbers))


if __name__ == "__main__":
    main()
