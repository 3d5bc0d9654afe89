"""What experiments cost from a cache and with the teacher in the loop, at full size: measured parts, then a sum.

Of each scan: one pass of stage one for a view, the part of a step that belongs to one scan with targets from the cache,
and the same with the teacher in the loop. The sums are for SemanticKITTI's training scans and the published experiment.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_step import measure, write_teacher

SCANS = 19_130
"""Training scans of SemanticKITTI (Behley et al., ICCV 2019)."""

EPOCHS = 40
"""Of `configs/experiments/full.yaml`."""

VIEWS = 4
"""Stored of each scan."""

EXPERIMENTS = (1, 5, 20)


def measured_parts(repeats: int) -> dict[str, float]:
    """Seconds of a scan: `dump_s`, `step_cached_s`, `step_online_s`; `full_mb` of a stored scan-view."""
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        write_teacher(Path(temporary) / "teacher.pt")
        for part in ("dump", "cached", "online"):
            numbers |= measure(part, Path(temporary), repeats)
    return {name: numbers[name] for name in ("dump_s", "step_cached_s", "step_online_s", "full_mb")}


def costs(parts: Mapping[str, float]) -> list[dict[str, Any]]:
    """For each number of experiments: passes of the teacher, hours and bytes, cached and online."""
    rows = []
    for experiments in EXPERIMENTS:
        trained, dumped = SCANS * EPOCHS * experiments, SCANS * VIEWS
        cached = dumped * parts["dump_s"] + trained * parts["step_cached_s"]
        online = trained * parts["step_online_s"]
        rows.append(
            {
                "experiments": experiments,
                "teacher_passes_cached": dumped,
                "teacher_passes_online": trained,
                "hours_cached": cached / 3600,
                "hours_online": online / 3600,
                "ratio": cached / online,
                "gigabytes_cached": dumped * parts["full_mb"] / 1e3,
            }
        )
    return rows


def cost_table(rows: list[dict[str, Any]]) -> list[str]:
    """The costs as Markdown."""
    lines = ["| experiments | teacher passes, cached | online | time, cached over online | store |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [
            str(row["experiments"]),
            f"{row['teacher_passes_cached']:,}",
            f"{row['teacher_passes_online']:,}",
            f"{row['ratio']:.3f}",
            f"{row['gigabytes_cached']:.0f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
