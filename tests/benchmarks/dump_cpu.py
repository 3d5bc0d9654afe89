"""CPU seconds that a dump costs beside the teacher, of one thread, for one scan-view; a part of `bench_step`."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.base.config import load_settings
from common.scans.dataset import Dataset, LabelledScan, open_dataset, voxelise_view
from common.scans.polar_grid import PolarGrid
from common.scans.scan_batch import batch_scans
from common.scans.view import IDENTITY
from common.targets.store import TargetEncoding, TargetStore, TeacherTargets
from common.targets.store.compression import chunk_bytes
from common.targets.store.scan_file import start_encoding
from common.targets.store.zarr_zip import zip_of_group
from tests.golden.golden_files import REPOSITORY, scans_folder


def encoded(targets: TeacherTargets, shape: tuple[int, int, int], encoding: TargetEncoding) -> dict[str, np.ndarray]:
    """Arrays as a store keeps them."""
    return start_encoding(targets, shape, encoding, {})().arrays


def dump_cpu_part(folder: Path, repeats: int) -> dict[str, float]:
    """CPU seconds of one thread beside the teacher, for one scan-view of a full-size teacher, by stage and profile."""
    from stage1_dump_teacher.dump import identity_of
    from stage1_dump_teacher.settings import DumpSettings
    from stage1_dump_teacher.teachers.cylinder3d import load_teacher

    torch.set_num_threads(1)
    teacher = load_teacher(folder / "teacher.pt", torch.device("cpu"))
    numbers: dict[str, float] = {}
    for profile in ("train", "full"):
        settings = load_settings(DumpSettings, REPOSITORY / "configs/teachers/cylinder3d.yaml", [f"profile={profile}"])
        dataset, grid = open_dataset(scans_folder(), settings.dataset), settings.grid.grid()
        scan = dataset.select(settings.splits).scans[0]
        source = dataset.read(scan)
        batch = batch_scans([voxelise_view(source, IDENTITY, grid, dataset.label_map)], grid.shape)
        targets = teacher.targets(batch, settings.layers, settings.voxel_features)
        identity = identity_of(settings, teacher, dataset.label_map)
        store, encoding = TargetStore.create_or_resume(folder / f"cpu_{profile}", identity, {}), settings.encoding
        store.write(scan, 0, IDENTITY, targets, source.points)
        data = store.storage.read(store.name(scan, 0))
        arrays = encoded(targets, grid.shape, encoding)

        def batched(dataset: Dataset = dataset, source: LabelledScan = source, grid: PolarGrid = grid) -> None:
            batch_scans([voxelise_view(source, IDENTITY, grid, dataset.label_map)], grid.shape)

        stages: dict[str, Callable[[], Any]] = {
            "reading": partial(dataset.read, scan),
            "voxelising": batched,
            "encoding": partial(encoded, targets, grid.shape, encoding),
            "compressing": partial(zip_of_group, arrays, {}, encoding),
            "writing": partial(store.storage.write, "probe", data),
            "everything": lambda: store.write(scan, 0, IDENTITY, targets, source.points),  # noqa: B023 - called at once
            "codec alone": lambda: [chunk_bytes(values, encoding) for values in arrays.values()],  # noqa: B023
        }
        taken = {stage: cpu_seconds(call, 5 * repeats) for stage, call in stages.items()}
        written = taken.pop("everything")
        taken["checks, hash, metadata"] = written - taken["encoding"] - taken["compressing"] - taken["writing"]
        numbers |= {f"dump_cpu {profile}: {stage}": seconds for stage, seconds in taken.items()}
        numbers[f"dump_cpu_s_per_scan_{profile}"] = taken["reading"] + taken["voxelising"] + written
    return numbers


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds of this process in a call, after one warm-up: what others do on the machine can only add."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def dump_cpu_table(numbers: dict[str, float]) -> str:
    """CPU seconds beside the teacher by stage, as text."""
    lines = [f"{'CPU seconds beside the teacher':32} {'train':>8} {'full':>8}"]
    stages = [name.removeprefix("dump_cpu train: ") for name in numbers if name.startswith("dump_cpu train: ")]
    for stage in [*stages, "all"]:
        found = [
            numbers[f"dump_cpu_s_per_scan_{profile}" if stage == "all" else f"dump_cpu {profile}: {stage}"]
            for profile in ("train", "full")
        ]
        lines.append(f"  {stage:30} {found[0]:8.4f} {found[1]:8.4f}")
    return "\n".join([*lines, f"{'goal: the larger of this and codec alone':32} {0.08:.2f} {0.16:.2f}"])
