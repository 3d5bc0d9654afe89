"""Both stages on one GPU: right, complete, fast; against budgets. Minutes.

    python -m tests.benchmarks.bench_gpu [--json] [--out FILE]
    python -m tests.benchmarks.bench_gpu --device cpu --views 2 --repeats 1      (no GPU: the same, small)

The golden networks and the sample scans (`GOLDEN_DIR`, `SCANS_DIR`). `docs/gpu.md` shows what it printed.
"""

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import spconv
import torch

from common.base.devices import select_device
from tests.benchmarks.gpu import student_parts, teacher_parts
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.student_parts import steps

BUDGETS: dict[str, tuple[str, float]] = {
    "teacher_logits_float32": ("<=", 1e-4),
    "student_logits_float32": ("<=", 1e-4),
    "late_copies": ("<=", 0),
    "dump_train_over_teacher": ("<=", 1.15),
    "dump_full_over_teacher": ("<=", 1.15),
    "dump_error_over_limit": ("<=", 1),
    "cached_over_none": ("<=", 1.05),
    "cached_over_online": ("<=", 1),
    "waits": ("<=", 0),
    "gpu_busy": (">=", 0.9),
}
"""Of the full size on a GPU. `cached_over_none` and `gpu_busy` are those of a training at batch 2 in tf32."""


def parts(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name, in order: dumps come before the steps that read them."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "teacher": lambda: teacher_parts.teacher(bench),
        "copies": lambda: teacher_parts.copies(bench),
        "student": lambda: student_parts.student(bench),
        "dump": lambda: teacher_parts.dumps(bench),
        "gradients": lambda: student_parts.gradients(bench),
    }
    for size in (2, 8) if bench.on_gpu else (2,):
        for precision in ("tf32", "float32", "bfloat16") if bench.on_gpu else ("float32",):
            for targets in ("cache", "none", "online"):
                if targets == "online" and precision != "tf32" and bench.on_gpu:
                    continue
                found[f"{targets} {size} {precision}"] = lambda targets=targets, size=size, precision=precision: steps(  # type: ignore[misc]
                    bench, targets, size, precision, detail=size == 2 or targets == "cache"
                )
    if bench.on_gpu:
        for precision in ("tf32", "bfloat16"):
            found[f"cache 2 {precision} compiled"] = lambda precision=precision: steps(  # type: ignore[misc]
                bench, "cache", 2, precision, "compile=true", detail=True
            )
    return found


def measure(bench: Bench, minutes: float) -> dict[str, Any]:
    """Everything, each part by itself: one that fails is named, and the others go on."""
    began = time.perf_counter()
    found: dict[str, Any] = {"failed": {}}
    for name, part in parts(bench).items():
        try:
            if time.perf_counter() - began > 60 * minutes:
                raise TimeoutError("no time left (--minutes)")
            if bench.on_gpu:
                # What the part before has left in cycles would count as memory of this one.
                gc.collect()
                torch.cuda.reset_peak_memory_stats()
            with redirect_stdout(sys.stderr):
                found[name] = part()
            if bench.on_gpu:
                found[name]["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        except Exception as failure:  # a part that fails must not hide the others
            found["failed"][name] = f"{type(failure).__name__}: {failure}"[:400]
        click.echo(f"{time.perf_counter() - began:.0f} s {name}: {json.dumps(rounded(found.get(name)))}", err=True)
    return found | {"seconds": time.perf_counter() - began}


def against_budgets(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each budget with its value and whether it is met; budgets of parts that failed are not met."""
    cached, none, online = (found.get(f"{targets} 2 tf32", {}) for targets in ("cache", "none", "online"))
    values = {
        "teacher_logits_float32": found.get("teacher", {}).get("float32", {}).get("logits"),
        "student_logits_float32": found.get("student", {}).get("float32", {}).get("logits"),
        "late_copies": found.get("copies", {}).get("late"),
        "dump_train_over_teacher": found.get("dump", {}).get("train_over_teacher"),
        "dump_full_over_teacher": found.get("dump", {}).get("full_over_teacher"),
        "dump_error_over_limit": found.get("dump", {}).get("worst_error_over_limit"),
        "cached_over_none": ratio(cached, none, "training_ms"),
        "cached_over_online": ratio(cached, online, "training_ms"),
        "waits": cached.get("waits"),
        "gpu_busy": cached["gpu_ms"] / cached["step_ms"] if "gpu_ms" in cached else None,
    }
    met = {"<=": lambda value, limit: value <= limit, ">=": lambda value, limit: value >= limit}
    return {
        name: {"value": values[name], "budget": f"{sign} {limit:g}", "met": met[sign](values[name], limit)}
        if values[name] is not None
        else {"value": None, "budget": f"{sign} {limit:g}", "met": False}
        for name, (sign, limit) in BUDGETS.items()
    }


def ratio(one: dict[str, Any], other: dict[str, Any], name: str) -> float | None:
    """Of a number of two parts; None where one lacks it."""
    return one[name] / other[name] if name in one and name in other else None


def rounded(value: Any) -> Any:
    """The same with four significant digits."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(budgets: dict[str, dict[str, Any]]) -> str:
    """The budgets as text."""
    lines = [f"{'':26}{'value':>12}  {'budget':>10}"]
    for name, entry in budgets.items():
        value = "failed" if entry["value"] is None else f"{entry['value']:.4g}"
        lines.append(f"{name:26}{value:>12}  {entry['budget']:>10}  {'' if entry['met'] else 'not met'}".rstrip())
    return "\n".join(lines)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
@click.option("--out", type=click.Path(path_type=Path), help="Write that object here too.")
@click.option("--device", default="auto", show_default=True, help="auto, cuda, cuda:1 or cpu.")
@click.option("--reduced", is_flag=True, help="Small networks on a small grid, as always on a CPU.")
@click.option("--views", default=24, show_default=True, help="Views of each scan in a dump.")
@click.option("--repeats", default=10, show_default=True, help="Of what is timed.")
@click.option("--minutes", default=8.0, show_default=True, help="Parts that would begin later are left out.")
def main(as_json: bool, out: Path | None, device: str, reduced: bool, views: int, repeats: int, minutes: float) -> None:
    """Run both stages on a GPU and hold what they do against budgets."""
    chosen = select_device(device)
    with tempfile.TemporaryDirectory() as folder:
        # A CPU would need an hour for the full size, and has nothing to be held against.
        reduced = reduced or chosen.type == "cpu"
        found = measure(Bench(chosen, reduced, Path(folder), repeats, views), minutes)
    about = {"torch": torch.__version__, "spconv": spconv.__version__, "cores": len(os.sched_getaffinity(0))}
    if chosen.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(chosen), "architecture": torch.cuda.get_device_capability(chosen)}
    budgets = against_budgets(found)
    result = json.dumps(rounded({"about": about, "budgets": budgets, **found}))
    if chosen.type == "cuda" and not reduced:
        click.echo(table(budgets))
    if out is not None:
        out.write_text(result + "\n")
    if as_json:
        click.echo(result)
    if found["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
