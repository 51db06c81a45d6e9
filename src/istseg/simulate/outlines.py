"""Polygons of cells, nuclei and the instrument's cells, block by block: each belongs to the block of its seed."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import shapely

from istseg.artifacts.labels import outlines_of
from istseg.simulate.seeds import PIXEL_UM, block_box, block_of, grow
from istseg.simulate.tissue import REACH_PX, Tissue

_MIN_CELL_UM2 = 10.0
_MIN_NUCLEUS_UM2 = 4.0
_TOLERANCE_UM = 0.08


class Truth(NamedTuple):
    """Cells of a block (arrays of one length) and its nuclei."""

    number: np.ndarray
    polygon: np.ndarray
    kind: np.ndarray
    degraded: np.ndarray
    n_nuclei: np.ndarray
    nucleus_of: np.ndarray
    nucleus: np.ndarray


class Outlines:
    """Polygons in the scene frame, clipped to the mosaic; what is cut to a sliver there is left out."""

    def __init__(self, tissue: Tissue, width_um: float, height_um: float):
        self.tissue, self._bounds = tissue, (0.0, 0.0, width_um, height_um)
        self.truth = lru_cache(maxsize=60)(self._truth)
        self.vendor = lru_cache(maxsize=60)(self._vendor)

    def kept(self, numbers: np.ndarray, which: str = "truth") -> np.ndarray:
        """Whether each cell number (0 for none) has a polygon in `truth` or `vendor`: (n,) bool."""
        unique, inverse = np.unique(numbers, return_inverse=True)
        known = np.zeros(len(unique), bool)
        for by, bx in sorted(set(zip(*(v.tolist() for v in block_of(unique[unique > 0])), strict=True))):
            known |= np.isin(unique, getattr(self, which)(by, bx)[0])
        return known[inverse]

    def _truth(self, by: int, bx: int) -> Truth:
        box = grow(block_box(by, bx), REACH_PX)
        numbers, nuclei = self.tissue.labels(box)
        table = self.tissue.cells(box)
        index = table.index(numbers)
        mine = np.isin(np.arange(table.size), index) & _owned(table["number"], by, bx)
        rows, polygons = self._polygons(np.where(index < table.size, index + 1, 0), np.flatnonzero(mine), box, _MIN_CELL_UM2)
        both = np.where(nuclei > 0, index * 2 + nuclei, 0)
        keys, nucleus = self._polygons(both, np.concatenate([rows * 2, rows * 2 + 1]), box, _MIN_NUCLEUS_UM2)
        order = np.argsort(keys, kind="stable")
        keys, nucleus = keys[order], nucleus[order]
        n_nuclei = np.bincount(keys // 2, minlength=table.size)[rows]
        return Truth(table["number"][rows], polygons, table["kind"][rows], table["degraded"][rows], n_nuclei, table["number"][keys // 2], nucleus)

    def _vendor(self, by: int, bx: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and polygons of the instrument's cells."""
        box = grow(block_box(by, bx), 2 * REACH_PX)
        labels = self.tissue.vendor_labels(box)
        table = self.tissue.cells(box)
        index = table.index(labels)
        mine = np.isin(np.arange(table.size), index) & _owned(table["number"], by, bx)
        rows, polygons = self._polygons(np.where(index < table.size, index + 1, 0), np.flatnonzero(mine), box, _MIN_NUCLEUS_UM2)
        return table["number"][rows], polygons

    def _polygons(self, labels: np.ndarray, rows: np.ndarray, box: tuple[int, int, int, int], min_area: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (label − 1) that are large enough inside the mosaic, and their polygons in µm."""
        present = np.intersect1d(rows + 1, labels)
        found = outlines_of(labels.astype(np.int32), present, offset=box[:2])
        rows = np.array(sorted(found), np.int64) - 1
        polygons = np.array([found[row + 1] for row in rows], dtype=object)
        if not len(rows):
            return rows, polygons
        polygons = shapely.transform(polygons, lambda xy: xy * PIXEL_UM)
        polygons = shapely.simplify(polygons, _TOLERANCE_UM)
        polygons = shapely.clip_by_rect(polygons, *self._bounds)
        pieces = shapely.get_type_id(polygons) != shapely.GeometryType.POLYGON
        for i in np.flatnonzero(pieces):
            parts = shapely.get_parts(polygons[i])
            polygons[i] = max(parts, key=shapely.area) if len(parts) else shapely.Polygon()
        large = shapely.area(polygons) >= min_area
        return rows[large], shapely.orient_polygons(polygons[large])


def _owned(numbers: np.ndarray, by: int, bx: int) -> np.ndarray:
    ys, xs = block_of(numbers)
    return (ys == by) & (xs == bx)
