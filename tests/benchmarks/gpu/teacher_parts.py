"""Stage one on a device: is the teacher right, are copies complete, how fast is a dump."""

import time
from functools import partial
from typing import Any

import torch

from common.base.config import load_settings
from common.scans.scan_batch import batch_scans
from common.targets.store import TargetStore
from common.targets.store.encoding import encode
from common.targets.teacher import Precision
from stage1_dump_teacher.dump import BATCH_ON_GPU
from stage1_dump_teacher.dump import run as dump
from stage1_dump_teacher.settings import DumpSettings
from stage1_dump_teacher.store_care.live_check import compare_live, worst
from tests.benchmarks.gpu.bench import CACHED, REDUCED_DUMP, Bench
from tests.golden.golden_files import (
    GRIDS,
    golden_arrays,
    golden_batch,
    golden_voxels,
    relative_frobenius,
)
from tests.shared.reduced import CONFIGS, DATASET

LAYERS = ("vox", "ctx", "up1e", *CACHED)
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "float16")


@torch.inference_mode()
def teacher(bench: Bench) -> dict[str, Any]:
    """The teacher against the original's logits and its own layers on the CPU, in each precision; its speed."""
    golden = golden_arrays("teacher_reduced_a" if bench.reduced else "teacher_full_logits")
    expected = golden["logits.feat" if bench.reduced else "logits"]
    on_cpu = Bench(torch.device("cpu"), bench.reduced, bench.folder)
    reference = on_cpu.teacher().model(golden_batch(bench.size), LAYERS)
    batch, found = golden_batch(bench.size).to(bench.device), dict[str, Any]()
    for precision in PRECISIONS if bench.on_gpu else PRECISIONS[:1]:
        live = bench.teacher(precision)
        targets = partial(live.targets, batch, CACHED)
        outputs = live.model(batch, LAYERS)
        logits = outputs.logits.float().cpu()
        layers = {name: layer.to("cpu") for name, layer in outputs.layers.items()}
        errors = [relative_frobenius(layers[name].features.float(), reference.layers[name].features) for name in LAYERS]
        found[precision] = {
            "logits": relative_frobenius(logits, expected),
            "worst_layer": max(errors),
            "same_voxels": all(torch.equal(layers[name].voxels, reference.layers[name].voxels) for name in LAYERS),
            "argmax": float((logits.argmax(1) == reference.logits.argmax(1)).float().mean()),
            "targets_ms": bench.milliseconds(targets),
        }
    return found


def copies(bench: Bench) -> dict[str, Any]:
    """How often targets that have just been copied to the CPU differ from the same ones a moment later; must be 0."""
    live, batch, late = bench.teacher(), golden_batch(bench.size).to(bench.device), 0
    rounds = 30 if bench.on_gpu else 1
    for _ in range(rounds):
        moved = live.targets(batch, CACHED, voxel_features=True).to("cpu")
        tensors = [moved.logits, *(layer.features for layer in moved.voxel_layers.values())]
        tensors += [
            torch.from_numpy(codes) for codes in encode(moved.logits.to(bench.device), "int8_row", "l").values()
        ]
        early = [tensor.clone() for tensor in tensors]
        bench.wait()
        late += not all(map(torch.equal, early, tensors))
    return {"rounds": rounds, "late": late}


def dumps(bench: Bench) -> dict[str, Any]:
    """Milliseconds a scan of a whole dump, beside those of the teacher alone in batches of the same size, and whether
    what is stored is right."""
    found: dict[str, Any] = {}
    for profile in ("train", "full"):
        seconds = {}
        # The difference of two dumps leaves out loading and the first, slower, scans.
        for views in (min(4, bench.views - 1), bench.views):
            words = [f"dataset={DATASET}", 'splits=["00"]', f"profile={profile}", f"views.count={views}"]
            words += REDUCED_DUMP if bench.reduced else ()
            settings = load_settings(DumpSettings, CONFIGS / "teachers/cylinder3d.yaml", words)
            start, cache = time.perf_counter(), bench.folder / f"{profile}{views}"
            written = dump(settings, bench.data, [bench.checkpoint], cache, bench.device).written
            seconds[written] = time.perf_counter() - start
        (few, short), (many, long) = sorted(seconds.items())
        found[f"{profile}_ms"] = 1e3 * (long - short) / (many - few)
    live, together = bench.teacher(), settings.batch_size or (BATCH_ON_GPU if bench.on_gpu else 1)
    batch = batch_scans([golden_voxels(bench.size)] * together, GRIDS[bench.size]).to(bench.device)
    found["teacher_ms"] = bench.milliseconds(lambda: live.targets(batch, CACHED)) / together
    found["full_over_teacher"] = found["full_ms"] / found["teacher_ms"]
    found["train_over_teacher"] = found["train_ms"] / found["teacher_ms"]
    store = TargetStore.open(bench.folder / f"full{bench.views}")
    items = [(scan, view) for scan in bench.scans for view in range(min(bench.views, 4))]
    errors = worst(compare_live(store, live, bench.dataset.files, items, bench.device))
    found["worst_error_over_limit"] = max(error.error / error.limit for error in errors)
    return found
