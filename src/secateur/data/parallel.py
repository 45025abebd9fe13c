"""One function for many numbers, in threads: decoding images leaves Python's lock alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")
AHEAD = 8  # results that each thread may be ahead of the one that is asked for


def in_parallel(function: Callable[[int], Value], count: int, workers: int) -> Iterator[Value]:
    """function(0), function(1) ... function(count - 1), in this order; with one worker in the calling thread."""
    if workers <= 1:
        yield from map(function, range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(function, number) for number in range(min(count, AHEAD * workers)))
        try:
            for number in range(count):
                result = waiting.popleft().result()
                if number + AHEAD * workers < count:
                    waiting.append(pool.submit(function, number + AHEAD * workers))
                yield result
        finally:  # an error, or Ctrl-C: what has not begun is left
            for future in waiting:
                future.cancel()
