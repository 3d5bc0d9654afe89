"""Processes that work for the threads of this one.

Threads take turns with Python's lock: one that launches a GPU's kernels, thousands a second, waits for it after each of
them once others compute beside it. Processes do not share the lock. Arrays travel in shared memory, whose blocks are
used again and again: fresh memory would have to be mapped page by page, which holds up the launching thread as well.
"""

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from mmap import mmap
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from common.base.errors import PolarDistillError
from common.base.memory import keep_freed_memory

Result = TypeVar("Result")
Arrays = Mapping[str, np.ndarray]
Address = tuple[str, int]
"""Of a block, for another process: a path, and a number that no later block has."""
Places = dict[str, tuple[str, tuple[int, ...], int]]
"""Of arrays in a block: dtype, shape and first byte by name."""

SHARED_MEMORY = Path("/dev/shm")
ALIGNMENT = 64
LEAST_BLOCK = 2**20

LEFT_ALONE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that reach all processes of a terminal or a job; the one that asks decides what becomes of its helpers."""

SECONDS_TO_END = 10.0
"""For processes that have nothing left to do; then they are made to."""

# Of a process that works for another one: what it was given, and the blocks that it has seen.
_given: list[Any] = []
_blocks: dict[int, mmap] = {}


class Block(NamedTuple):
    """Shared memory without a name: nothing is left of it, even where all processes are killed at once."""

    memory: mmap
    file: int
    address: Address


_numbers = itertools.count()


class WorkerError(PolarDistillError):
    """Processes cannot be started, or one has ended."""


class WorkerProcesses:
    """Some processes that run functions for whichever thread asks; as a context manager, they end with it.

    They also end when this process does, however that is, and leave Ctrl-C, SIGTERM and a closed terminal to it.
    `given` is the first argument of every call; it travels once to each process.

    Raises:
        WorkerError: they cannot be started, or `given` cannot travel.
    """

    def __init__(self, count: int, given: Any) -> None:
        # Each is a fresh Python: forks of one with threads, as PyTorch has, can hang.
        context = multiprocessing.get_context("spawn")
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._free: list[Block] = []
        self._block_bytes = LEAST_BLOCK
        try:
            with ExitStack() as unless_started:
                with _signals_held_back():
                    self._pool = ProcessPoolExecutor(count, context, _begin, (given, lifeline))
                    unless_started.callback(self._pool.shutdown, cancel_futures=True)
                    unless_started.callback(self._lifeline.close)
                    started = [self._pool.submit(os.getpid) for _ in range(count)]
                for future in started:
                    future.result()
                with self._block(0) as block:
                    self.call(_can_attach, block.address)
                unless_started.pop_all()
        except Exception as error:  # whatever a dataset or a store of somebody's own raises when it is pickled
            why = "one of them ended at once" if isinstance(error, BrokenProcessPool) else error
            raise WorkerError(f"processes that read and write could not be started: {why}") from error

    def __enter__(self) -> "WorkerProcesses":
        return self

    def __exit__(self, *error: Any) -> None:
        # Of one that was killed the others may wait for ever for a lock.
        limit = threading.Timer(SECONDS_TO_END, self._lifeline.close)
        limit.start()
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)
        finally:
            limit.cancel()
            self._lifeline.close()
            while self._free:
                _drop(self._free.pop())

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What `function(given, *arguments)` returns or raises in one of the processes; waits for it.

        Raises:
            WorkerError: a process has ended, which none does by itself.
        """
        try:
            return self._pool.submit(_with_given, function, *arguments).result()
        except BrokenProcessPool as error:
            # The others may wait for ever for a lock that it held.
            self._lifeline.close()
            raise WorkerError(
                "a process that reads or writes scans was ended from outside, perhaps because memory ran out. Run the "
                "command again, it goes on where it stopped; with fewer readers and writers, or processes=false."
            ) from error

    def call_with(self, function: Callable[..., Result], arrays: Arrays, *arguments: Any) -> Result:
        """What `function(given, arrays, *arguments)` returns; the arrays are its own only until then. As `call`."""
        places, size = _places_of(arrays)
        with self._block(size) as block:
            _fill(block.memory, places, arrays)
            return self.call(_with_arrays, function, block.address, places, *arguments)

    def call_for(
        self, function: Callable[..., tuple[Result, Arrays]], *arguments: Any
    ) -> tuple[Result, dict[str, np.ndarray]]:
        """What `function(given, *arguments)` returns: something small, and arrays. As `call`."""
        with self._block(0) as block:
            result, places, arrays = self.call(_for_arrays, function, block.address, *arguments)
            if arrays:
                # They came through a pipe; the next ones will find room.
                self._block_bytes = max(self._block_bytes, _places_of(arrays)[1])
                return result, dict(arrays)
            return result, {name: values.copy() for name, values in _arrays_in(block.memory, places).items()}

    @contextmanager
    def _block(self, size: int) -> Iterator[Block]:
        """One that nobody else uses, of at least so many bytes."""
        self._block_bytes = max(self._block_bytes, size)
        block = None
        with suppress(IndexError):
            block = self._free.pop()
        if block is None or len(block.memory) < self._block_bytes:
            if block is not None:
                _drop(block)
            block = _new_block(self._block_bytes * 3 // 2)
        try:
            yield block
        finally:
            self._free.append(block)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """What is held back here is held back in processes that are started meanwhile, from their first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_ALONE)
    try:
        # It frees what they share when all have ended. Started by hand: whoever starts it lets signals through again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_ALONE)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _new_block(size: int) -> Block:
    """Shared memory, all of it there: a process that writes to memory which is only promised would be ended.

    Raises:
        PolarDistillError: there is not so much.
    """
    with ExitStack() as unless_made:
        try:
            file = os.open(SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR, 0o600)
            unless_made.callback(os.close, file)
            os.posix_fallocate(file, 0, size)
            memory = mmap(file, size)
        except OSError as error:
            raise PolarDistillError(
                f"{SHARED_MEMORY}: no room for {size / 1e6:.0f} MB to hand scans over ({error.strerror}). Give the "
                "container more (docker: --shm-size=4g, or --ipc=host), or set processes=false."
            ) from error
        unless_made.pop_all()
    return Block(memory, file, (f"/proc/{os.getpid()}/fd/{file}", next(_numbers)))


def _drop(block: Block) -> None:
    """Give a block back to the system; it may be mapped for as long as an array in it is in use."""
    os.close(block.file)
    with suppress(BufferError):
        block.memory.close()


def _begin(given: Any, lifeline: Connection) -> None:
    """In a process that has just started."""
    torch.set_num_threads(1)
    keep_freed_memory()
    _given[:] = [given]
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """Nothing is ever sent: waiting ends when the process at the other end lets go of it, or has ended."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _can_attach(given: Any, address: Address) -> None:
    """At the start: where blocks cannot be handed over, threads can still do the work."""
    _attached(address)


def _with_given(function: Callable[..., Result], *arguments: Any) -> Result:
    """`call`, in the process that works."""
    try:
        return function(*_given, *arguments)
    except Exception as error:
        if _travels(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _travels(error: Exception) -> bool:
    """Whether another process can make it from its arguments: one that cannot would take a process for killed."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of somebody's own does when it is made
        return False
    return True


def _with_arrays(
    given: Any, function: Callable[..., Result], address: Address, places: Places, *arguments: Any
) -> Result:
    """`call_with`, in the process that works."""
    return function(given, _arrays_in(_attached(address), places), *arguments)


def _for_arrays(
    given: Any, function: Callable[..., tuple[Result, Arrays]], address: Address, *arguments: Any
) -> tuple[Result, Places, Arrays]:
    """`call_for`, in the process that works: where the arrays lie in the block; if it is too small, they themselves."""
    result, arrays = function(given, *arguments)
    places, size = _places_of(arrays)
    memory = _attached(address)
    if size > len(memory):
        return result, {}, arrays
    _fill(memory, places, arrays)
    return result, places, {}


def _attached(address: Address) -> mmap:
    """A block of the process that this one works for; mapped once."""
    path, number = address
    if number not in _blocks:
        with open(path, "r+b") as file:
            _blocks[number] = mmap(file.fileno(), 0)
    return _blocks[number]


def _places_of(arrays: Arrays) -> tuple[Places, int]:
    """Where arrays lie in a block one after another, and its bytes."""
    places, size = {}, 0
    for name, values in arrays.items():
        places[name] = (values.dtype.str, values.shape, size)
        size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    return places, size


def _arrays_in(memory: mmap, places: Places) -> dict[str, np.ndarray]:
    return {name: np.ndarray(shape, dtype, memory, start) for name, (dtype, shape, start) in places.items()}


def _fill(memory: mmap, places: Places, arrays: Arrays) -> None:
    for name, values in _arrays_in(memory, places).items():
        np.copyto(values, arrays[name])


def shared_memory_free() -> int:
    """Bytes that processes can still share, 0 where they cannot; containers often come with 64 MB in all."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
