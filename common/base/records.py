"""Small helpers for frozen dataclasses of tensors."""

from dataclasses import replace
from typing import TypeVar

import torch

Record = TypeVar("Record")


def move_tensors(record: Record, device: torch.device | str) -> Record:
    """A copy of a dataclass with every tensor field moved to `device`."""
    moved = {k: v.to(device, non_blocking=True) for k, v in vars(record).items() if isinstance(v, torch.Tensor)}
    return replace(record, **moved)  # type: ignore[type-var]


def no_rows(record: Record) -> Record:
    """A copy of a dataclass with no row left in any tensor field."""
    emptied = {name: value[:0] for name, value in vars(record).items() if isinstance(value, torch.Tensor)}
    return replace(record, **emptied)  # type: ignore[type-var]
