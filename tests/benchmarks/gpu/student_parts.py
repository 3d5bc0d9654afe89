"""Stage two on a device: is the student right, how fast is a step, and what in it is waited for."""

import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from common.base.devices import set_float32_precision
from common.training.processes import Processes
from stage2_train_student.settings import ExperimentSettings
from stage2_train_student.training.data import StudentBatch, StudentData
from stage2_train_student.training.experiment import new_state, open_targets, student_data
from stage2_train_student.training.precision import autocast
from stage2_train_student.training.state import capture, replays
from stage2_train_student.training.step import StudentStep, losses, targets_of
from tests.benchmarks.gpu.bench import Bench
from tests.golden.golden_files import golden_arrays, golden_batch, golden_student, label_map, relative_frobenius

PRECISIONS = ("float32", "tf32", "bfloat16")
CPU = torch.device("cpu")
WAIT = "called a synchronizing"
"""What PyTorch says when the host waits for a GPU."""


@torch.no_grad()
def student(bench: Bench) -> dict[str, Any]:
    """The student against the original's logits, in each precision; its speed."""
    golden, batch, found = golden_arrays(f"student_{bench.size}"), golden_batch(bench.size).to(bench.device), {}
    network = golden_student(bench.size).to(bench.device)
    for precision in PRECISIONS if bench.on_gpu else PRECISIONS[:1]:
        set_float32_precision(tf32=precision == "tf32")
        with autocast(precision, bench.device):
            logits = network(batch).voxel_logits.float().cpu()
            milliseconds = bench.milliseconds(lambda: network(batch))
        found[precision] = {
            "logits": relative_frobenius(logits[golden["rows"]], golden["logits"]),
            "argmax": float((logits.argmax(1).numpy() == golden["argmax"]).mean()),
            "forward_ms": milliseconds,
        }
    return found


def gradients(bench: Bench) -> dict[str, Any]:
    """Loss terms and gradients of one step against the CPU's, with nothing dropped at random."""
    found, kept = {}, []
    for device, precision in [(CPU, "float32"), (bench.device, "float32"), (bench.device, "tf32")]:
        there = Bench(device, bench.reduced, bench.folder, views=bench.views)
        one_step, data = prepared(there, "cache", precision, "student.dropblock=0", "batch_size=1")
        loaded = data.load_batch(bench.scans[:1], 0)
        batch = loaded.batch.to(device)
        networks = one_step.state.networks
        arguments = batch, targets_of(loaded, batch, None, device), one_step.class_weights
        total, terms = losses(networks.student.train(), networks.distillation.train(), *arguments)
        total.backward()
        parameters = one_step.state.optimiser.param_groups[0]["params"]
        gradient = torch.cat([p.grad.flatten() for p in parameters]).double().cpu()
        kept.append((gradient, {name: float(value.detach()) for name, value in terms.items()}))
        (want, right), (got, ours) = kept[0], kept[-1]
        error = max(abs(ours[name] - right[name]) / max(abs(right[name]), 1e-9) for name in right)
        found[f"{device.type} {precision}"] = {"gradient": relative_frobenius(got, want), "terms": error}
    return found


def prepared(
    bench: Bench, targets: str, precision: str = "float32", *overrides: str
) -> tuple[StudentStep, StudentData]:
    """A step of a fresh student, and the loader of its batches."""
    settings = bench.experiment(targets, f"precision={precision}", *overrides)
    set_float32_precision(tf32=precision == "tf32")
    teacher = bench.teacher() if targets == "online" else None
    source = open_targets(settings, label_map(), bench.scans, bench.folder / f"train{bench.views}", teacher)
    data = student_data(settings, bench.dataset, source, bench.device)
    torch.manual_seed(0)
    state = new_state(settings, label_map(), source, bench.device)
    weights = torch.from_numpy(label_map().class_weights()).to(bench.device)
    processes = Processes(device=bench.device)
    torch.backends.cudnn.benchmark = bench.on_gpu
    if replays(settings, processes):
        capture(state.networks, settings)
    return StudentStep(state, settings, weights, source.online, processes), data


def steps(
    bench: Bench, targets: str, size: int, precision: str, *overrides: str, detail: bool = False
) -> dict[str, Any]:
    """Milliseconds of a step on batches that are there, and of one that loads its batches as a training does.

    With `detail` also what is waited for, and how busy the GPU is.
    """
    one_step, data = prepared(bench, targets, precision, f"batch_size={size}", *overrides)
    scans = (bench.scans * size)[:size]
    ready = sent(data, data.load_batch(scans, 0))
    found: dict[str, Any] = {"step_ms": milliseconds_a_step(bench, one_step, repeat(ready), min(3, bench.repeats))}
    if detail:
        found["load_ms"] = bench.milliseconds(lambda: data.load_batch(scans, 0), 3, 1)
        found["training_ms"] = training_milliseconds(bench, one_step, data, scans)
        if bench.on_gpu:
            found |= waits(one_step, ready) | busy_share(bench, one_step, ready)
    return found


def sent(data: StudentData, loaded: StudentBatch) -> StudentBatch:
    """A batch where it is used."""
    return loaded if data.stream is None else loaded.sent(data.stream)


def training_milliseconds(bench: Bench, one_step: StudentStep, data: StudentData, scans: list[Any]) -> float:
    """Time of a step whose batches are loaded ahead; the first ones fill the queue and are not counted."""
    settings: ExperimentSettings = one_step.settings
    threads = settings.threads(bench.device)
    first = min(2 * threads, bench.repeats) + 1
    return milliseconds_a_step(bench, one_step, data.batches([scans] * (first + bench.repeats), 0, threads), first)


def milliseconds_a_step(bench: Bench, one_step: StudentStep, batches: Iterable[StudentBatch], first: int = 3) -> float:
    """Time of a step where steps follow each other as in a training: the terms of the last one are read meanwhile.

    The first ones are not counted.
    """
    clock, last = [], None
    for loaded in islice(batches, first + bench.repeats):
        read = one_step.launch([loaded.arrived()])
        if last is not None:
            last()
        last = read
        clock.append(time.perf_counter())
    bench.wait()
    return 1e3 * (time.perf_counter() - clock[first - 1]) / (len(clock) - first)


def waits(one_step: StudentStep, ready: StudentBatch) -> dict[str, Any]:
    """Lines in which the host waits for the GPU during a step, until it has launched all of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        read = one_step.launch([ready.arrived()])
        torch.cuda.set_sync_debug_mode("default")
    read()
    lines = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if WAIT in str(w.message)]
    return {"waits": len(lines), "waits_at": {line: lines.count(line) for line in sorted(set(lines))}}


def busy_share(bench: Bench, one_step: StudentStep, ready: StudentBatch) -> dict[str, Any]:
    """Share of the time of some steps in which the GPU computes, and the kernels that take most of it."""
    counted = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        milliseconds = milliseconds_a_step(replace(bench, repeats=counted - 1), one_step, repeat(ready), 1)
    work = [event for event in profile.events() if event.device_type == torch._C._autograd.DeviceType.CUDA]
    computed = sum(event.device_time for event in work) / 1e3 / counted
    top = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)[:12]
    return {
        "gpu_ms": computed,
        "profiled_ms": milliseconds,
        "kernels": len(work) // counted,
        "top_ms": {event.key[:60]: event.self_device_time_total / 1e3 / counted for event in top},
    }
