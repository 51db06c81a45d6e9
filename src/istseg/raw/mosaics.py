"""Strips of stains whose planes are whole mosaics, read by as many threads as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np

from istseg.cpus import given_cpus
from istseg.raw.tiffs import PageInfo, PageReader

_PIECE_BYTES = 1 << 20
"""Of a page, read at a time: it stays in the processor's cache while planes are projected, and no thread waits long for another."""


def strips(stacks: list[list[PageInfo]], rows: int) -> Iterator[np.ndarray]:
    """Give (c, h, x) uint16 strips from top to bottom: of every stack the maximum of its planes. A strip is valid until the next one.

    Parameters
    ----------
    stacks
        Pages of every stain, at least one; all of one size.
    rows
        Height of a strip; the last one may be lower.
    """
    height, width = stacks[0][0].shape
    readers = [[PageReader(page) for page in pages] for pages in stacks]
    try:
        # One is read while the caller works on the other.
        buffers = [np.empty((len(readers), min(rows, height), width), np.uint16) for _ in range(1 + (rows < height))]
        with ThreadPoolExecutor(given_cpus()) as threads:
            before, reading = None, []
            for i, y0 in enumerate(range(0, height, rows)):
                _wait(reading)
                strip = buffers[i % 2][:, : min(rows, height - y0)]
                reading = _read(readers, strip, y0, threads)
                if before is not None:
                    yield before
                before = strip
            _wait(reading)
            yield before
    finally:
        for reader in (r for planes in readers for r in planes):
            reader.close()


def _read(readers: list[list[PageReader]], strip: np.ndarray, y0: int, threads: Executor) -> list[Future[None]]:
    """Let threads fill a strip (c, h, x) with the rows from y0."""
    height, width = strip.shape[1:]
    reading = []
    for planes, target in zip(readers, strip, strict=True):
        # Segments are decoded once, by one thread.
        step = _rows_at_a_time(width) if all(r.plain for r in planes) else height
        reading += [threads.submit(_project, planes, target[top : top + step], y0 + top) for top in range(0, height, step)]
    for reader in (r for planes in readers for r in planes):
        threads.submit(reader.expect, y0 + height, y0 + 2 * height)
    return reading


def _wait(reading: list[Future[None]]) -> None:
    for piece in reading:
        piece.result()


def _rows_at_a_time(width: int) -> int:
    return max(_PIECE_BYTES // (2 * width), 1)


def _project(planes: list[PageReader], target: np.ndarray, y0: int) -> None:
    """Maximum of the planes of a stain into `target` (h, x), the rows from y0."""
    planes[0].rows(y0, y0 + len(target), target)
    if len(planes) == 1:
        return
    step = _rows_at_a_time(target.shape[1])
    spare = np.empty((min(step, len(target)), target.shape[1]), target.dtype)
    for reader in planes[1:]:
        for top in range(0, len(target), step):
            part = target[top : top + step]
            np.maximum(part, reader.rows(y0 + top, y0 + top + len(part), spare[: len(part)]), out=part)
