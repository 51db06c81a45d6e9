"""In which cell does a point lie? By look-up in a label image, or by an index of polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import shapely

from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError

_BLOCK = 1024
"""Side of the blocks in which a label image is read, pixels: 4 MB, whatever the width of the slide."""


class Locator(Protocol):
    """Maps (n, 2) points (x, y) in µm to the index of their cell, -1 outside of cells."""

    name: str

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """(n,) int64."""
        ...


class LabelLocator:
    """Looks points up in a label image on disk.

    Parameters
    ----------
    store
        `labels.zarr`; the array `name` (y, x) has the attribute `micron_to_working`.
    labels
        (n,) the label of each cell.

    Raises
    ------
    InputError
        If there is no such array, it lacks its frame, or a cell has no label of its own.

    """

    name = "labels"

    def __init__(self, store: Path, name: str, labels: np.ndarray):
        import zarr

        try:
            group = zarr.open_group(store, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise InputError(f"{store}: is not a zarr group ({error}); it should be the labels.zarr of the stage merge.") from None
        if name not in group:
            raise InputError(f"{store}: has no array {name!r}, only {sorted(group.array_keys())}; leave --labels out to count by polygons.")
        self._array = group[name]
        matrix = self._array.attrs.get("micron_to_working")
        if matrix is None:
            raise InputError(f"{store}/{name}: lacks the attribute micron_to_working; run merge again.")
        self._matrix = np.asarray(matrix, float)
        labels = np.asarray(labels, np.int64)
        if len(labels) and (labels.min() < 1 or len(np.unique(labels)) != len(labels)):
            raise InputError(f"{store}/{name}: the cells need one positive label each to be looked up; leave --labels out to count by polygons.")
        self._where = f"{store}/{name}"
        self._cell_of = np.full(int(labels.max(initial=0)) + 1, -1, np.int64)
        self._cell_of[labels] = np.arange(len(labels))

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """(n,) int64 index of the cell of each point (µm), -1 outside."""
        height, width = self._array.shape
        pixel = np.floor(apply_affine(self._matrix, xy)).astype(np.int64)
        x, y = pixel[:, 0], pixel[:, 1]
        cell = np.full(len(xy), -1, np.int64)
        inside = np.flatnonzero((x >= 0) & (x < width) & (y >= 0) & (y < height))
        block = (y[inside] // _BLOCK) * (width // _BLOCK + 1) + x[inside] // _BLOCK
        order = inside[np.argsort(block, kind="stable")]
        for group in np.split(order, np.flatnonzero(np.diff(np.sort(block))) + 1):
            if not len(group):
                continue
            y0, x0 = y[group].min(), x[group].min()
            values = self._array[y0 : y[group].max() + 1, x0 : x[group].max() + 1]
            cell[group] = self._cells(values[y[group] - y0, x[group] - x0].astype(np.int64))
        return cell

    def _cells(self, labels: np.ndarray) -> np.ndarray:
        unknown = (labels >= len(self._cell_of)) | (labels < 0)
        cell = self._cell_of[np.where(unknown, 0, labels)]
        unknown |= (labels > 0) & (cell < 0)
        if unknown.any():
            raise InputError(f"{self._where}: holds the label {labels[unknown][0]}, which the cells do not have; the two come from different runs of merge.")
        return cell


class PolygonLocator:
    """Finds the first polygon that covers a point.

    Where polygons overlap or share a border the one with the smallest index has the point, so that no transcript is counted twice and the
    result depends on nothing but the order of the cells.

    Parameters
    ----------
    polygons
        (n,) polygons or multipolygons in µm; empty or missing ones cover nothing.

    """

    name = "polygons"

    def __init__(self, polygons: np.ndarray):
        self._polygons = np.asarray(polygons, dtype=object)
        self._tree = shapely.STRtree(self._polygons)

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """(n,) int64 index of the cell of each point (µm), -1 outside."""
        point, polygon = self.pairs(xy)
        first = np.full(len(xy), len(self._polygons), np.int64)
        np.minimum.at(first, point, polygon)
        return np.where(first < len(self._polygons), first, -1)

    def pairs(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index of the point and of the polygon of every pair where the polygon covers the point: a point in two polygons is there twice."""
        if not len(xy) or not len(self._polygons):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # Points far from any cell make up most of a slide's empty area: the tree sorts them out by bounding boxes.
        point, polygon = self._tree.query(shapely.points(xy))
        near = np.unique(polygon)
        shapely.prepare(self._polygons[near])
        covered = shapely.intersects_xy(self._polygons[polygon], xy[point, 0], xy[point, 1])
        # Prepared geometries are several times larger; a slide has a million of them.
        shapely.destroy_prepared(self._polygons[near])
        return point[covered], polygon[covered]
