"""In which cell does a transcript lie? By look-up in a label image, by an index of polygons (of one plane or of each), or by a table of transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely

from istseg.artifacts.planes import Planes
from istseg.artifacts.sample import apply_affine
from istseg.errors import InputError

_BLOCK = 1024
"""Side of the blocks in which a label image is read, pixels: 4 MB, whatever the width of the slide."""


class Locator(Protocol):
    """Maps points to the index of their cell, -1 outside of cells.

    Points are (n, 2) places (x, y) in µm, (n, 3) with their plane, or (n,) ids of transcripts where `by_id` is set.
    """

    name: str
    by_id: bool

    def __call__(self, keys: np.ndarray) -> np.ndarray:
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
    by_id = False

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
    by_id = False

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


class PlaneLocator:
    """Finds the cell of a point among the outlines of the point's own plane.

    Of points in a plane that no cell of the sample has, the nearest plane with cells counts, of two as near the lower one. A cell without an outline in a
    point's plane does not have the point. Overlaps as in `PolygonLocator`. Memory holds the outlines that reach into the strip of y of one call.

    Parameters
    ----------
    planes
        Outlines by plane; not empty.

    """

    name = "planes"
    by_id = False

    def __init__(self, planes: Planes):
        self._planes = planes
        self._groups: tuple[int, ...] = ()
        self._held: dict[int, tuple[np.ndarray, PolygonLocator]] = {}

    def nearest(self, z: np.ndarray) -> np.ndarray:
        """(n,) plane of the outlines that decides for points of the planes `z`; NaN counts as plane 0, as in convert."""
        z = np.nan_to_num(np.asarray(z, float))
        planes = self._planes.planes
        upper = np.clip(np.searchsorted(planes, z), 0, len(planes) - 1)
        lower = np.maximum(upper - 1, 0)
        return np.where(np.abs(z - planes[lower]) <= np.abs(planes[upper] - z), planes[lower], planes[upper])

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """(n,) int64 index of the cell of each point (n, 3): x, y in µm and plane; -1 outside."""
        cell = np.full(len(keys), -1, np.int64)
        if not len(keys):
            return cell
        groups = self._planes.groups(float(keys[:, 1].min()), float(keys[:, 1].max()))
        if groups != self._groups:
            # Let go of before the next are read, so that memory never holds two strips.
            self._held = {}
            self._held = {plane: (cells, PolygonLocator(polygons)) for plane, (cells, polygons) in self._planes.read(groups).items()}
            self._groups = groups
        plane = self.nearest(keys[:, 2])
        for z, (cells, locator) in self._held.items():
            points = np.flatnonzero(plane == z)
            found = locator(keys[points, :2])
            cell[points] = np.where(found >= 0, cells[found], -1)
        return cell


class TableLocator:
    """Looks transcripts up in a table of `transcript_id` and `cell_id`.

    Parameters
    ----------
    path
        Parquet; transcripts that it lacks, or whose cell is null, lie in no cell.
    cell_ids
        (n,) id of each cell.

    Raises
    ------
    InputError
        If the file is no such table, names a transcript twice or a cell that is not there.

    """

    name = "table"
    by_id = True

    def __init__(self, path: Path, cell_ids: np.ndarray):
        try:
            table = pq.read_table(path, columns=["transcript_id", "cell_id"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: is not a Parquet table with transcript_id and cell_id ({error}); run comparator collect again.") from None
        table = table.filter(pc.is_valid(table["cell_id"]))
        column = table["cell_id"]
        if not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        # Each name is looked up once, not once for every transcript.
        encoded = column.unify_dictionaries().combine_chunks()
        cell = pc.index_in(encoded.dictionary.cast(pa.string()), pa.array(cell_ids, pa.string())).take(encoded.indices)
        if cell.null_count:
            unknown = table["cell_id"].filter(pc.is_null(cell))[0].as_py()
            raise InputError(f"{path}: names the cell {unknown!r}, which the cells do not have; the two come from different runs.")
        ids = table["transcript_id"].to_numpy()
        order = np.argsort(ids, kind="stable")
        self._path, self._found = path, 0
        self._ids, self._cell = ids[order], cell.to_numpy()[order].astype(np.int32)
        repeated = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(repeated):
            raise InputError(f"{path}: names the transcript {self._ids[repeated[0]]} more than once; a transcript has one cell or none.")

    def __call__(self, transcript_id: np.ndarray) -> np.ndarray:
        """(n,) int64 index of the cell of each transcript, -1 without."""
        if not len(self._ids):
            return np.full(len(transcript_id), -1, np.int64)
        at = np.minimum(np.searchsorted(self._ids, transcript_id), len(self._ids) - 1)
        there = self._ids[at] == transcript_id
        self._found += int(there.sum())
        return np.where(there, self._cell[at], -1).astype(np.int64)

    def check_used(self) -> None:
        """Raise InputError when the table names transcripts that were not asked for: it is of another sample."""
        if self._found != len(self._ids):
            raise InputError(
                f"{self._path}: names {len(self._ids)} transcripts, the sample has {self._found} of them; the table is of another sample or conversion."
            )
