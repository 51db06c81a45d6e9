"""Polygons as runs of pixels: means over polygons in bulk, without a label image, so that overlapping cells are measured in full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely


@dataclass
class Spans:
    """Runs of pixels [start, stop) of a row, of polygon `shape`; a pixel belongs to a polygon if its centre lies inside.

    Attributes
    ----------
    shape, row, start, stop
        int64 (runs,).
    n_shapes
        Number of polygons, those without any pixel included.

    """

    shape: np.ndarray
    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    n_shapes: int

    @property
    def area(self) -> np.ndarray:
        """int64 (shapes,): pixels of each polygon."""
        return np.bincount(self.shape, weights=self.stop - self.start, minlength=self.n_shapes).astype(np.int64)

    def means(self, image: np.ndarray) -> np.ndarray:
        """float64 (shapes,): mean over each polygon of an image (y, x) of unsigned integers up to 16 bits or booleans; NaN for polygons without a pixel."""
        total = np.zeros((image.shape[0], image.shape[1] + 1), np.uint32 if image.shape[1] <= 65536 else np.uint64)
        np.cumsum(image, axis=1, dtype=total.dtype, out=total[:, 1:])
        run = total[self.row, self.stop] - total[self.row, self.start]
        area = self.area
        sums = np.bincount(self.shape, weights=run, minlength=self.n_shapes)
        return np.divide(sums, area, out=np.full(self.n_shapes, np.nan), where=area > 0)


def scan(polygons: np.ndarray, shape: tuple[int, int]) -> Spans:
    """Scan-convert valid polygons (holes and several parts allowed) in bulk.

    Parameters
    ----------
    polygons
        (n,) in pixels (x, y) of the image; what lies outside of it is cut off.
    shape
        (height, width) of the image.

    """
    parts, of_shape = shapely.get_parts(polygons, return_index=True)
    rings, of_part = shapely.get_rings(parts, return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    edge = np.flatnonzero(of_ring[1:] == of_ring[:-1])
    owner = of_shape[of_part[of_ring[edge]]] if len(edge) else np.empty(0, np.int64)
    (ax, ay), (bx, by) = xy[edge].T, xy[edge + 1].T
    # Half-open in y: a corner on a row's centre line counts for one of its two edges, so crossings come in pairs.
    low = np.clip(np.ceil(np.minimum(ay, by) - 0.5), 0, shape[0]).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(ay, by) - 0.5), 0, shape[0]).astype(np.int64)
    n = high - low
    e = np.repeat(np.arange(len(edge)), n)
    row = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + low[e]
    x = ax[e] + (row + 0.5 - ay[e]) * (bx[e] - ax[e]) / (by[e] - ay[e])
    order = np.lexsort((x, row, owner[e]))
    column = np.clip(np.ceil(x[order] - 0.5), 0, shape[1]).astype(np.int64)
    start, stop = column[0::2], column[1::2]
    filled = stop > start
    first = order[0::2][filled]
    return Spans(owner[e][first], row[first], start[filled], stop[filled], len(polygons))
