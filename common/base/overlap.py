"""Overlapping reading, computing and writing with threads, in order and with bounded memory."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def started_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2, threads: int = 1
) -> Generator[tuple[Item, "Future[Result]"], None, None]:
    """Yield each item with the future of `function(item)`, keeping up to `depth` calls started ahead of the consumer.

    The consumer calls `result()`, so an error appears at its own item and the consumer decides what to do about it.
    """
    with ThreadPoolExecutor(threads) as pool:
        started: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                started.append((item, pool.submit(function, item)))
                if len(started) > depth:
                    yield started.popleft()
            while started:
                yield started.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class BackgroundWriter:
    """Runs calls on threads behind the caller's back, at most `depth` at a time; errors surface in the caller.

    With depth 0 calls run at once, in the caller: right where they would only take cores from it. Use as a context
    manager: leaving it waits for what was started, and raises what went wrong there.
    """

    def __init__(self, depth: int = 2, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._started: deque[Future[Any]] = deque()
        self._depth = depth

    def __enter__(self) -> "BackgroundWriter":
        return self

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call; waits for the oldest one, and raises its error, when `depth` calls are already under way."""
        if not self._depth:
            function(*arguments)
            return
        while len(self._started) >= self._depth:
            self._started.popleft().result()
        self._started.append(self._pool.submit(function, *arguments))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._started:
                future.result()


class StageClock:
    """What an item costs in each stage of a pipeline; `threads` says how many share the work of each."""

    def __init__(self, threads: dict[str, int]) -> None:
        self.threads = threads
        self._taken = dict.fromkeys(threads, (0, 0.0))
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float, items: int = 1) -> None:
        """So many more items went through a stage, in `seconds` altogether."""
        with self._lock:
            items_before, seconds_before = self._taken[stage]
            self._taken[stage] = items_before + items, seconds_before + seconds

    @contextmanager
    def measure(self, stage: str, items: int = 1) -> Iterator[None]:
        """`add` the time until the context is left."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start, items)

    @property
    def seconds(self) -> dict[str, float]:
        """Between two items, were a stage alone: the mean time of an item over the stage's threads."""
        with self._lock:
            return {
                stage: seconds / max(items, 1) / self.threads[stage] for stage, (items, seconds) in self._taken.items()
            }

    @property
    def slowest(self) -> str:
        """The stage that holds up the others, such as `teacher 38 ms`."""
        stage, seconds = max(self.seconds.items(), key=lambda item: item[1])
        return f"{stage} {1e3 * seconds:.0f} ms"
