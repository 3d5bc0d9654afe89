"""Keeping freed memory inside the process on a CPU, where getting it back costs as much as computing in it."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of giving them back to the operating system.

    A training step frees and allocates blocks of tens of megabytes; given back, each has to be mapped and zeroed again
    page by page. Peak memory rises a little. Call it before the first large allocation; elsewhere than on glibc it
    does nothing.

    Returns:
        whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_MAX, 0)) and bool(library.mallopt(M_TRIM_THRESHOLD, LARGEST))
