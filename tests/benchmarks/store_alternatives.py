"""The same stored arrays of one scan in other formats: time to read them, size, files. Used by bench_store."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numcodecs.zstd
import numpy as np
import torch
import zarr
from zarr.codecs import ZstdCodec

from common.scans.scan_id import ScanId
from common.targets.store import TargetStore
from tests.benchmarks.store_reading import median_seconds, read_with_zarr

Arrays = dict[str, np.ndarray]


def alternatives_table(store: TargetStore, item: tuple[ScanId, int], folder: Path) -> str:
    """A table of formats, fastest reading first."""
    arrays = read_with_zarr(store, *item)
    folder.mkdir(parents=True)
    rows = []
    path = Path(store.location) / store.name(*item)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows.append(measured("this store (zarr zip, direct reader)", lambda: store.read_encoded(*item, None), [path]))
        rows.append(measured("the same file, zarr's own API", lambda: read_with_zarr(store, *item), [path]))
        for make in (npz, npz_compressed, torch_file, hdf5, lmdb_file, zarr_folder):
            rows.append(make(arrays, folder))
    rows.sort(key=lambda row: row[1])
    lines = [f"{'format':40} {'read ms':>8} {'MB':>7} {'files':>6}"]
    return "\n".join(
        lines + [f"{name:40} {1e3 * read:8.1f} {size / 1e6:7.2f} {files:6d}" for name, read, size, files in rows]
    )


def measured(name: str, read: Callable[[], Any], paths: list[Path]) -> tuple[str, float, int, int]:
    """A row of the table."""
    files = [path for path in paths if path.is_file()]
    return name, median_seconds(read, 9), sum(path.stat().st_size for path in files), len(files)


def npz(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """np.savez."""
    path = folder / "plain.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return measured("np.savez", lambda: dict(np.load(path)), [path])


def npz_compressed(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """np.savez_compressed."""
    path = folder / "compressed.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return measured("np.savez_compressed", lambda: dict(np.load(path)), [path])


def torch_file(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """torch.save."""
    path = folder / "arrays.pt"
    signed = {name: values.view(np.int32) if values.dtype == np.uint32 else values for name, values in arrays.items()}
    torch.save({name: torch.from_numpy(values) for name, values in signed.items()}, path)
    return measured("torch.save", lambda: torch.load(path, weights_only=True), [path])


def hdf5(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """h5py with gzip, the compressor that every HDF5 has."""
    path = folder / "arrays.h5"
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(
                name, data=values, chunks=values.shape, compression="gzip", compression_opts=1, shuffle=True
            )

    def read() -> Arrays:
        with h5py.File(path) as file:
            return {name: file[name][:] for name in arrays}

    return measured("HDF5, gzip-1 and shuffle", read, [path])


def lmdb_file(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """LMDB with zstd-1 values."""
    path = folder / "arrays.lmdb"
    environment = lmdb.open(str(path), map_size=2**30, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for name, values in arrays.items():
            transaction.put(name.encode(), numcodecs.zstd.compress(values, 1))

    def read() -> Arrays:
        with environment.begin() as transaction:
            return {name: decompressed(transaction.get(name.encode()), values) for name, values in arrays.items()}

    return measured("LMDB, zstd-1, no checksums", read, [path])


def decompressed(data: bytes | None, like: np.ndarray) -> np.ndarray:
    """Undo zstd into an array like another one."""
    out = np.empty_like(like)
    numcodecs.zstd.decompress(data, out)
    return out


def zarr_folder(arrays: Arrays, folder: Path) -> tuple[str, float, int, int]:
    """One zarr group per scan in a folder, written and read through the ordinary API."""
    path = folder / "arrays.zarr"
    group = zarr.create_group(path)
    for name, values in arrays.items():
        group.create_array(name, data=values, chunks=values.shape, compressors=[ZstdCodec(level=1)])

    def read() -> Arrays:
        opened = zarr.open_group(path, mode="r")
        return {name: np.asarray(member[:]) for name, member in opened.arrays()}

    return measured("zarr group in a folder, zarr's own API", read, list(path.rglob("*")))
