"""Memory of this process: keeping freed blocks where getting them back costs as much as computing, and its peak."""

import ctypes
import platform
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of giving them back to the operating system.

    A training step frees and allocates blocks of tens of megabytes; given back, each has to be mapped and zeroed again
    page by page. Peak memory rises a little. Call it before the first large allocation; other C libraries stay as they
    are.

    Returns whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, LARGEST))


def peak_memory(device: "torch.device") -> int:
    """Most memory that this process has held so far, bytes: on the GPU for a CUDA device, otherwise resident in RAM."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    # Linux's own counter first: getrusage also counts what the parent process held when it started this one.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.is_file() else None
    if found:
        return int(found[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
