"""The last step of segment: outlines and files of tiles, beside the prediction of the next ones.

On a GPU this takes longer than the prediction, and numpy holds Python's lock: it is done in processes. They import no torch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.labels import TileLabels, describe
from istseg.artifacts.tiles import Tile
from istseg.cpus import given_cpus

log = logging.getLogger("istseg")

LAYER = "cells"
PROCESSES = 6
"""At most; each holds a tile. One CPU is left to the prediction."""


class Finisher:
    """Makes the tables and files of tiles in the background; not further ahead than one tile per worker, so that memory holds a few tiles at most."""

    def __init__(self, pool: Executor, workers: int, out: Path):
        self._pool, self._workers, self._out = pool, workers, out
        self._unfinished: deque[Future] = deque()

    def add(self, tile: Tile, labels: np.ndarray, means: tuple[np.ndarray, np.ndarray] | None, record: dict[str, Any], seconds: float) -> None:
        """Take a tile whose prediction took so many seconds; waits for an earlier one where as many as there are workers are unfinished.

        Parameters
        ----------
        labels
            (y, x) int32 over the region.
        means
            (n,) of the flow's length and of the logit for the cells 1…n; None where no window was computed.
        record
            How the cells were made.
        """
        if len(self._unfinished) == self._workers:
            self._wait()
        self._unfinished.append(self._pool.submit(finish, tile, labels, means, record, self._out, seconds))

    def _wait(self) -> None:
        try:
            log.info("%s", self._unfinished.popleft().result())
        except BrokenProcessPool:
            raise MemoryError("a process that writes tiles was ended from outside, as the system does when memory runs out") from None

    def close(self) -> None:
        while self._unfinished:
            self._wait()


@contextmanager
def finisher(out: Path, apart: bool) -> Iterator[Finisher]:
    """A `Finisher` that writes below a folder; `apart` in processes where there are CPUs for them, else in one thread."""
    workers = min(PROCESSES, given_cpus() - 1) if apart else 1
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ready) if workers > 1 else ThreadPoolExecutor(1)
    with pool:
        # Processes start with the first task: not only when the first tile is there.
        pool.submit(_ready)
        made = Finisher(pool, max(workers, 1), out)
        yield made
        made.close()


def _ready() -> None:
    """All that a process does before its first tile: importing this module takes a second."""


def finish(tile: Tile, labels: np.ndarray, means: tuple[np.ndarray, np.ndarray] | None, record: dict[str, Any], out: Path, prediction: float) -> str:
    """Outlines and files of a tile whose prediction took so many seconds; gives a line for the log."""
    begin = time.perf_counter()
    times: dict[str, float] = {}

    def clock() -> dict[str, float]:
        finishing = time.perf_counter() - begin
        times.update(seconds=round(prediction + finishing, 3), prediction_seconds=round(prediction, 3), finishing_seconds=round(finishing, 3))
        return times

    grid = tile.window_grid
    objects = describe(LAYER, labels, tile.core, tile.region, (grid.height, grid.width), *(means or (None, None)))
    TileLabels(tile.sample, tile.tile_id, tile.core, tile.region, {LAYER: labels}, objects, record).write(out / tile.tile_id, clock)
    return f"{tile.sample} {tile.tile_id}: {int(objects['owned'].sum())} cells of {len(tile.windows)} windows in {times['seconds']:.1f} s"
