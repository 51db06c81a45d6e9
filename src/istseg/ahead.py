"""Work on the next thing beside that on the present one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], make: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item and what is made of it, by a thread that makes the first one from the call on, and the next one while the caller works on one."""
    pool = ThreadPoolExecutor(1)
    rest = iter(items)
    waiting = [(item, pool.submit(make, item)) for item in islice(rest, 1)]

    def given() -> Iterator[tuple[T, R]]:
        with pool:
            while waiting:
                item, future = waiting.pop()
                made = future.result()
                waiting.extend((following, pool.submit(make, following)) for following in islice(rest, 1))
                yield item, made

    return given()
