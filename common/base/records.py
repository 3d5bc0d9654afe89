"""Small helpers for frozen dataclasses of tensors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import torch

Record = TypeVar("Record")


def move_tensors(record: Record, device: torch.device | str) -> Record:
    """A copy of a dataclass with every tensor in it moved to `device`."""
    return _changed(record, lambda tensor: moved_tensor(tensor, device))


def no_rows(record: Record) -> Record:
    """A copy of a dataclass with no row left in any tensor in it."""
    return _changed(record, lambda tensor: tensor[:0])


def _changed(record: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy with every tensor changed, also those in its dictionaries and dataclasses."""
    if isinstance(record, torch.Tensor):
        return change(record)
    if isinstance(record, dict):
        return {name: _changed(value, change) for name, value in record.items()}
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{name: _changed(value, change) for name, value in vars(record).items()})
    return record


def moved_tensor(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on another device: on its way to a GPU, but there already on a CPU.

    What is copied to a CPU without waiting could be read before it has come.
    """
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def tensors_in(record: Any) -> Iterator[torch.Tensor]:
    """All tensors in a dataclass, and in the tuples, dictionaries and dataclasses in it."""
    if isinstance(record, torch.Tensor):
        yield record
    elif isinstance(record, tuple):
        yield from chain.from_iterable(map(tensors_in, record))
    elif isinstance(record, dict):
        yield from tensors_in(tuple(record.values()))
    elif is_dataclass(record):
        yield from tensors_in(vars(record))


def to_host(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors on the CPU, all there: a GPU's are copied into pinned memory, and waited for once."""
    return start_to_host(tensors)()


def start_to_host(tensors: Iterable[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Start what `to_host` does. The function that is returned waits for its end, in any thread."""
    tensors = list(tensors)
    copies = [tensor if tensor.device.type == "cpu" else _pinned_copy(tensor) for tensor in tensors]
    # Blocking: a thread that waits leaves its core to others.
    events = {tensor.device: torch.cuda.Event(blocking=True) for tensor in tensors if tensor.is_cuda}
    for device, event in events.items():
        event.record(torch.cuda.current_stream(device))

    def wait() -> list[torch.Tensor]:
        for event in events.values():
            event.synchronize()
        return copies

    return wait


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return pinned.copy_(tensor, non_blocking=tensor.is_cuda)
