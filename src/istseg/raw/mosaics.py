"""Strips of stains whose planes are whole mosaics, read by as many threads as there are CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
        buffer = np.empty((len(readers), min(rows, height), width), np.uint16)
        with ThreadPoolExecutor(given_cpus()) as threads:
            for y0 in range(0, height, rows):
                strip = buffer[:, : min(rows, height - y0)]
                pieces = (
                    threads.submit(_project, planes, target[top : top + step], y0 + top)
                    for planes, target in zip(readers, strip, strict=True)
                    # Segments are decoded once, by one thread.
                    for step in [_rows_at_a_time(width) if all(r.plain for r in planes) else len(target)]
                    for top in range(0, len(target), step)
                )
                for piece in list(pieces):
                    piece.result()
                for reader in (r for planes in readers for r in planes):
                    threads.submit(reader.expect, y0 + rows, y0 + 2 * rows)
                yield strip
    finally:
        for reader in (r for planes in readers for r in planes):
            reader.close()


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
