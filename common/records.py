"""Small helpers for frozen dataclasses of tensors."""

from dataclasses import replace
from typing import TypeVar

import torch

Record = TypeVar("Record")


def move_tensors(record: Record, device: torch.device | str) -> Record:
    """A copy of a dataclass with every tensor field moved to `device`."""
    moved = {k: v.to(device, non_blocking=True) for k, v in vars(record).items() if isinstance(v, torch.Tensor)}
    return replace(record, **moved)  # type: ignore[type-var]
