"""Choosing the device to compute on, its precision, and waiting for what was launched there."""

import os
import re
import time

import torch

from common.base.errors import SettingsError
from common.base.text import first_line

CPU = torch.device("cpu")
DEVICE_NAME = re.compile(r"cpu|cuda(:(?P<index>\d+))?")


def select_device(name: str = "auto") -> torch.device:
    """The device that a user named, after one small computation on it. A GPU becomes this thread's current device:
    spconv computes there, whatever device its tensors are on.

    Args:
        name: `cpu`, `cuda` (the first GPU; under torchrun this process's own), `cuda:1`, or `auto`: `cuda` if PyTorch
            sees a GPU, else the CPU.

    Raises:
        SettingsError: the name is unknown, or the GPU is not there or does not compute. `auto` does not fall back to
            the CPU from a GPU that is there but broken: that would hide a fault behind a run a hundred times slower.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    match = DEVICE_NAME.fullmatch(name)
    if match is None:
        raise SettingsError(f"unknown device '{name}'; choose auto, cpu, cuda, or one GPU such as cuda:1")
    if name == "cpu":
        return CPU
    index = int(match["index"] or 0)
    _check_cuda(name, index)
    device = torch.device("cuda", index)
    use_device(device)
    return device


def use_device(device: torch.device) -> None:
    """Make a GPU the current device of the calling thread; each thread has its own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


class Launch:
    """Work that this thread launches on a device while in the context; any thread can wait for its end."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        # Blocking: a thread that waits leaves its core to others.
        self._events = [torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2)] if on_gpu else []
        self._start = self._seconds = 0.0

    def __enter__(self) -> "Launch":
        self._start = time.perf_counter()
        if self._events:
            self._events[0].record()
        return self

    def __exit__(self, *error: object) -> None:
        if self._events:
            self._events[1].record()
        self._seconds = time.perf_counter() - self._start

    def wait(self) -> float:
        """Wait until all of it is done; the seconds that it took on its device."""
        if not self._events:
            return self._seconds
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1e3


def set_float32_precision(tf32: bool) -> None:
    """Let float32 products on a GPU round their factors to TF32, or compute as IEEE says, on this process's GPUs.

    PyTorch alone would take TF32 for convolutions and IEEE for linear layers.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _check_cuda(name: str, index: int) -> None:
    if torch.version.cuda is None:
        raise SettingsError(
            f"device '{name}': this PyTorch ({torch.__version__}) is built without CUDA. Install a CUDA build of the "
            "same version, or choose --device cpu."
        )
    if not torch.cuda.is_available():
        raise SettingsError(
            f"device '{name}': PyTorch finds no usable GPU. Check that `nvidia-smi` lists one, that its driver is new "
            f"enough for CUDA {torch.version.cuda}, that CUDA_VISIBLE_DEVICES does not hide it; or choose --device cpu."
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise SettingsError(f"device '{name}': there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    try:
        torch.ones(2, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        raise SettingsError(
            f"device '{name}' ({torch.cuda.get_device_name(index)}) does not compute: {first_line(error)} "
            "Check with `nvidia-smi` whether it is in use or too old for this PyTorch, or choose --device cpu."
        ) from error
