"""Reading scan files and delivering them to the training loop; used by bench_store."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import torch
import zarr
from torch.utils.data import DataLoader, Dataset
from zarr.storage import ZipStore

from common.base.overlap import started_ahead
from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from common.targets.store.chunks import CHECKSUM_BYTES
from common.targets.store.members import chunk_name, read_members

ScanView = tuple[ScanId, int]

READS = 10
"""Times that each scan is read in the comparison with the codec alone."""


def median_seconds(call: Callable[[], Any], repeats: int = 15) -> float:
    """Median time of a call after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_over_floor(store: TargetStore) -> dict[str, float]:
    """Time to open and read a scan's training arrays, over the codec alone decoding the same bytes from memory."""
    floors, ours, plain = [], [], []
    for scan, view in sorted(store.finished()):
        chunks = compressed_chunks(store.storage.read(store.name(scan, view)))
        # In turns: what else the machine does meanwhile then falls on all three alike.
        for _ in range(READS):
            floors.append(median_seconds(partial(decode_all, chunks), 3))
            ours.append(median_seconds(partial(store.read_encoded, scan, view, None), 3))
            plain.append(median_seconds(partial(read_with_zarr, store, scan, view), 1))
    return {
        "read_ms": 1e3 * statistics.median(ours),
        "floor_ms": 1e3 * statistics.median(floors),
        "read_over_floor": statistics.median(a / b for a, b in zip(ours, floors, strict=True)),
        "zarr_api_over_floor": statistics.median(a / b for a, b in zip(plain, floors, strict=True)),
    }


def compressed_chunks(data: bytes) -> list[tuple[str, bytes, tuple[int, ...], str]]:
    """Codec, compressed bytes, shape and dtype of every array in a scan file."""
    members = read_members(data)
    chunks = []
    for name, metadata in members.metadata.items():
        start, end = members.places[chunk_name(name, metadata)]
        codec = metadata["codecs"][1]["name"]
        chunks.append((codec, data[start : end - CHECKSUM_BYTES], tuple(metadata["shape"]), metadata["data_type"]))
    return chunks


def decode_all(chunks: list[tuple[str, bytes, tuple[int, ...], str]]) -> list[np.ndarray]:
    """The codecs and nothing else."""
    decoded = []
    for codec, data, shape, dtype in chunks:
        out = np.empty(shape, dtype)
        {"zstd": numcodecs.zstd, "blosc": numcodecs.blosc}[codec].decompress(data, out)
        decoded.append(out)
    return decoded


def read_with_zarr(store: TargetStore, scan: ScanId, view: int) -> dict[str, np.ndarray]:
    """All arrays of a scan file through zarr's ordinary API."""
    path = Path(store.location) / store.name(scan, view)
    with ZipStore(path, mode="r") as zip_store:
        group = zarr.open_group(zip_store, mode="r")
        return {name: np.asarray(member[:]) for name, member in group.arrays()}


class DictOfArrays(Dataset):
    """What one would write first: a map-style dataset that returns a dictionary of decoded arrays."""

    def __init__(self, store: TargetStore, work: list[ScanView]) -> None:
        self.store, self.work = store, work

    def __len__(self) -> int:
        return len(self.work)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        targets, _ = self.store.read_encoded(*self.work[row], None)
        features = {"logits": targets.logits} | {name: layer.features for name, layer in targets.layers.items()}
        tensors = dict(targets.coordinates)
        for name, stored in features.items():
            tensors |= {f"{name}.{part}": value for part, value in vars(stored).items() if value is not None}
        return tensors


def delivery(store: TargetStore, deliveries: int = 160) -> dict[str, float]:
    """Scans per second that reach the consuming loop: one thread, two threads, and a DataLoader of two workers."""
    views = sorted(store.finished())
    work = [views[row % len(views)] for row in range(deliveries)]

    def threads(count: int) -> Iterable[Any]:
        for _, future in started_ahead(
            lambda item: store.read_encoded(*item, None), work, depth=2 * count, threads=count
        ):
            yield future.result()

    def loader() -> Iterable[Any]:
        return DataLoader(DictOfArrays(store, work), batch_size=None, num_workers=2)

    rates: dict[str, list[float]] = {"one": [], "two": [], "loader": []}
    for _ in range(3):
        rates["one"].append(per_second(threads(1), deliveries))
        rates["two"].append(per_second(threads(2), deliveries))
        rates["loader"].append(per_second(loader(), deliveries))
    best = {name: max(values) for name, values in rates.items()}
    ratios = [two / one for two, one in zip(rates["two"], rates["one"], strict=True)]
    against = [two / loader for two, loader in zip(rates["two"], rates["loader"], strict=True)]
    return {
        "scans_per_s_one_thread": best["one"],
        "scans_per_s_two_threads": best["two"],
        "scans_per_s_dataloader": best["loader"],
        "two_worker_speedup": statistics.median(ratios),
        "delivery_over_dataloader": statistics.median(against),
    }


def per_second(items: Iterable[Any], count: int) -> float:
    """Items per second after the first, which pays for starting threads or processes."""
    iterator = iter(items)
    next(iterator)
    start = time.perf_counter()
    for _ in iterator:
        pass
    return (count - 1) / (time.perf_counter() - start)
