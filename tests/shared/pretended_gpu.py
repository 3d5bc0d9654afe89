"""A GPU that is none: tensors in a CPU's memory that say they are on `cuda:0`, and refuse what they would refuse there.

Which tensors lie on the GPU is known by their memory; numbers are computed on the CPU. As on a GPU, operations refuse
tensors of the CPU beside theirs, and what is copied to the CPU without waiting is there once an event that comes after
it is waited for, no earlier. What the host would have to wait for is counted. What is not pretended: kernels of its
own, streams that overlap, CUDA graphs, and spconv.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
NOT_THERE_YET = 77
"""What is read of a copy that nobody has waited for."""

ASKING = {
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"),
    *("aten::bincount", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
    "aten::repeat_interleave.Tensor",
}
"""Operations whose result, or its size, the host has to know before it can go on."""


class Gpu:
    """What lies in its memory, and what is on its way to the host.

    Attributes:
        waits: how often the host waited, by what for.
        current: the device that each thread has chosen, by the thread's number.
    """

    def __init__(self) -> None:
        # Memory is kept: no address must be used twice.
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._copies: list[Callable[[], object]] = []
        self._lock = threading.RLock()
        self.waits: Counter[str] = Counter()
        self.current: dict[int, torch.device] = {}

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Context in which a thread can use it."""
        with Calls(self), Operations(self):
            yield

    def holds(self, tensor: torch.Tensor) -> bool:
        return memory_of(tensor)._cdata in self._memory

    def take(self, result: Any) -> Any:
        """A result, whose tensors are on the GPU from here on."""
        self._memory |= {memory_of(tensor)._cdata: memory_of(tensor) for tensor in tensors_of(result)}
        return result

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned[memory_of(tensor)._cdata] = memory_of(tensor)
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return memory_of(tensor)._cdata in self._pinned

    def send(self, copy: Callable[[], object]) -> None:
        """Start a copy that nobody waits for yet."""
        with self._lock:
            self._copies.append(copy)

    def started(self) -> Callable[[], None]:
        """Waits for all copies that have been started so far."""
        with self._lock:
            copies = list(self._copies)

        def wait() -> None:
            with self._lock:
                for copy in copies:
                    if copy in self._copies:
                        self._copies.remove(copy)
                        copy()

        return wait


def memory_of(tensor: torch.Tensor) -> Any:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def tensors_of(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Operations(TorchDispatchMode):
    """Every operation: where its tensors are, where its results are, and whether the host waits for it."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        gpu, options, name = self.gpu, options or {}, operation.name()
        tensors = tensors_of((arguments, options))
        if not any(map(gpu.holds, tensors)):
            return operation(*arguments, **options)
        if name == "aten::copy_":
            return self.copied(operation, *arguments, **options)
        strangers = [tensor for tensor in tensors if tensor.dim() and not gpu.holds(tensor)]
        by_rows = name.startswith(("aten::index.", "aten::index_put", "aten::_index_put_impl_"))
        rows = [index for index in arguments[1] if index is not None] if by_rows else []
        if name in ASKING or any(index.dtype in (torch.bool, torch.uint8) for index in rows):
            gpu.waits[name] += 1
        # Rows alone may be named from the host: they are copied.
        copied = [stranger for stranger in strangers if any(stranger is index for index in rows)]
        gpu.waits["a copy"] += len(copied)
        if len(copied) < len(strangers):
            shapes = [list(stranger.shape) for stranger in strangers]
            raise RuntimeError(f"{name}: all tensors must be on one device; on the CPU are those of shape {shapes}")
        return gpu.take(operation(*arguments, **options))

    def copied(self, operation: Any, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
        """`target.copy_(source)`, one of them or both on the GPU."""
        gpu = self.gpu
        if gpu.holds(target) and gpu.holds(source):
            return operation(target, source)
        outside = source if gpu.holds(target) else target
        if non_blocking and gpu.is_pinned(outside):
            if outside is source:
                return operation(target, source)
            content = source.detach().clone()
            gpu.send(lambda: operation(target, content))
            return target.fill_(NOT_THERE_YET)
        gpu.waits["a copy"] += bool(source.dim() or outside is target)
        return operation(target, source)


class Calls(TorchFunctionMode):
    """Calls that name a device, or ask for one."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        gpu, options, name = self.gpu, dict(options or {}), getattr(function, "__name__", "")
        first, owner = arguments[0] if arguments else None, getattr(function, "__self__", None)
        if isinstance(first, torch.Tensor):
            if name == "__get__" and gpu.holds(first) and owner in (torch.Tensor.device, torch.Tensor.is_cuda):
                return GPU if owner is torch.Tensor.device else True
            if name in ("numpy", "__array__") and gpu.holds(first):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if name == "tolist" and gpu.holds(first):
                gpu.waits[name] += 1
            if name == "pin_memory":
                return gpu.pin(first.clone())
            if name in ("to", "cpu"):
                return self.moved(*arguments, **({"device": "cpu"} if name == "cpu" else options))
        if options.pop("pin_memory", False):
            return gpu.pin(function(*arguments, **options))
        if options.get("device") is not None and torch.device(options["device"]).type == "cuda":
            # What was a list or an array is copied from memory that is not pinned.
            gpu.waits["a copy"] += name in ("tensor", "as_tensor")
            return gpu.take(function(*arguments, **options | {"device": "cpu"}))
        return function(*arguments, **options)

    def moved(self, tensor: torch.Tensor, *words: Any, **options: Any) -> torch.Tensor:
        """`tensor.to(...)`, where it is or on the other side."""
        gpu, was_there = self.gpu, self.gpu.holds(tensor)
        words = tuple(GPU if isinstance(word, torch.Tensor) and gpu.holds(word) else word for word in words)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*words, **options)
        more = {"memory_format": layout} if layout else {}
        if device is None or (device.type == "cuda") == was_there:
            return tensor.to(dtype or tensor.dtype, **more)
        with _disable_current_modes():
            result = tensor.to(dtype or tensor.dtype, copy=True, **more)
            if was_there and non_blocking:
                content = result.clone()
                gpu.send(lambda: result.copy_(content))
                return result.fill_(NOT_THERE_YET)
        gpu.waits["a copy"] += was_there or not (non_blocking and gpu.is_pinned(tensor))
        return result if was_there else gpu.take(result)


class Event:
    """After it have come all copies to the host that were started before it was recorded last."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self.synchronize = gpu, lambda: None

    def record(self, stream: Any = None) -> None:
        self.synchronize = self._gpu.started()

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


class Stream:
    """Of a GPU on which all work but copies to the host is done at once."""

    def __init__(self, gpu: Gpu, device: torch.device = GPU) -> None:
        self.device, self._gpu = device, gpu

    def record_event(self) -> Event:
        event = Event(self._gpu)
        event.record()
        return event

    def wait_event(self, event: Event) -> None:
        pass


@contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """A GPU for this thread; others enter `Gpu.usable` first."""
    gpu, group = Gpu(), torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        groups = group(lists, with_indices)
        return {(GPU if gpu.holds(found[0][0][0]) else key[0], key[1]): found for key, found in groups.items()}

    with pytest.MonkeyPatch.context() as patch:
        # What optimisers ask.
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(torch.cuda, "Event", lambda **options: Event(gpu))
        patch.setattr(torch.cuda, "Stream", lambda device: Stream(gpu, device))
        patch.setattr(torch.cuda, "current_stream", lambda device=GPU: Stream(gpu))
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.cuda, "set_device", lambda device: gpu.current.update({threading.get_ident(): device}))
        with gpu.usable():
            yield gpu
