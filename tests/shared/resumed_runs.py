"""Runs that stop and go on, and whether two runs are the same."""

from pathlib import Path
from typing import Any

import torch

from common.training.recorder import read_metrics
from tests.shared.reduced import saved

SLOW = ("batch_size=1", "epochs=2", "steps=6", "validate_on=[]", "loading_threads=1")
"""Six steps over five scans: one epoch and the first step of the next."""

EVERYTHING = (
    *SLOW,
    "optimiser.accumulate=2",
    "optimiser.clip_norm=1.0",
    "optimiser.schedule.kind=cosine",
    "optimiser.schedule.warm_up=2",
    "averaging=0.9",
    "precision=bfloat16",
    "steps=5",
)
"""Every setting that changes a step, at once; the three steps of an epoch take two, two and one batches."""

RESUME = {"options": ("--resume",)}


def differing(left: Any, right: Any, name: str = "") -> list[str]:
    """Names of the entries of two nested states that are not equal bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), name
        return [line for key in left for line in differing(left[key], right[key], f"{name}.{key}")]
    if isinstance(left, list):
        assert len(left) == len(right), name
        return [
            line for row, pair in enumerate(zip(left, right, strict=True)) for line in differing(*pair, f"{name}.{row}")
        ]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return [] if same else [name]


def assert_same_run(run: Path, straight: Path) -> None:
    """Equal states but for settings that may change, and equal numbers recorded at every step."""
    left, right = saved(run), saved(straight)
    left.pop("settings"), right.pop("settings")
    assert differing(left, right) == []
    clocks = ("seconds", "waited")
    records = [
        [{key: value for key, value in line.items() if key not in clocks} for line in read_metrics(folder, "train")]
        for folder in (run, straight)
    ]
    assert records[0] == records[1]
