"""Small helpers for frozen dataclasses of tensors."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import torch

Record = TypeVar("Record")


def move_tensors(record: Record, device: torch.device | str) -> Record:
    """A copy of a dataclass with every tensor field moved to `device`."""
    moved = {
        name: moved_tensor(value, device) for name, value in vars(record).items() if isinstance(value, torch.Tensor)
    }
    return replace(record, **moved)  # type: ignore[type-var]


def moved_tensor(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on a device, all there: only towards a GPU do later operations wait for a copy by themselves."""
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda")


def pin_tensors(record: Record) -> Record:
    """A copy of a dataclass with every tensor field in pinned memory, from which a GPU copies by itself."""
    pinned = {k: v.pin_memory() for k, v in vars(record).items() if isinstance(v, torch.Tensor)}
    return replace(record, **pinned)  # type: ignore[type-var]


def to_host(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors on the CPU, all there: a GPU's are copied into pinned memory, and waited for once."""
    tensors = list(tensors)
    copies = [tensor if tensor.device.type == "cpu" else _pinned_copy(tensor) for tensor in tensors]
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return pinned.copy_(tensor, non_blocking=tensor.is_cuda)


def no_rows(record: Record) -> Record:
    """A copy of a dataclass with no row left in any tensor field."""
    emptied = {name: value[:0] for name, value in vars(record).items() if isinstance(value, torch.Tensor)}
    return replace(record, **emptied)  # type: ignore[type-var]
