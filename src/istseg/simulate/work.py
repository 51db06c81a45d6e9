"""Runs the parts of a simulation, on several processes when there are several parts; the result is the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from istseg.progress import track

T = TypeVar("T")
_MOST_WORKERS = 8  # each needs about half a gigabyte

_state: dict[str, Any] = {}


def run(make: Callable[[Any], Callable[[T], None]], argument: Any, parts: list[T], what: str, worth: bool = True) -> None:
    """Call `make(argument)(part)` for every part; `make` runs once in each process. `worth`: the parts are worth the seconds that processes need to start."""
    workers = min(_MOST_WORKERS, len(parts), len(os.sched_getaffinity(0)))
    if workers < 2 or not worth:
        task = make(argument)
        for part in track(parts, what):
            task(part)
        return
    # spawn: a forked child of a process with threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(make, argument)) as pool:
        for _ in track(pool.map(_one, parts), what, total=len(parts)):
            pass


def _start(make: Callable[[Any], Callable[[Any], None]], argument: Any) -> None:
    import cv2

    cv2.setNumThreads(1)
    _state["task"] = make(argument)


def _one(part: Any) -> None:
    _state["task"](part)
