"""Overlapping reading, computing and writing with threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def started_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2, threads: int = 1
) -> Iterator[tuple[Item, "Future[Result]"]]:
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
    """Runs calls on one thread behind the caller's back, at most `depth` at a time; errors surface in the caller.

    With depth 0 calls run at once, in the caller: right where they would only take cores from it. Use as a context
    manager: leaving it waits for what was started, and raises what went wrong there.
    """

    def __init__(self, depth: int = 2) -> None:
        self._pool = ThreadPoolExecutor(1)
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
