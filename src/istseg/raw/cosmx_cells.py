"""Vendor cells of CosMx: from the label images, else from the polygons table. Cells cut at the border of a field of view stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from istseg.artifacts.labels import outlines_of
from istseg.errors import InputError
from istseg.progress import track
from istseg.raw import tables
from istseg.raw.cosmx_geometry import Placement
from istseg.raw.polygons import single


def cell_name(fov: int, cell: int) -> str:
    """`cell_ID` is unique only within a field of view."""
    return f"c_{fov}_{cell}"


def from_labels(
    fovs: list[int], read_labels: Callable[[int], np.ndarray], placement: Placement, pixel_um: float
) -> tuple[list[str], list[Any], dict[str, int]]:
    """Outlines of the labels of every field of view, in µm."""
    ids, polygons, counts = [], [], {}
    for fov in track(fovs, "Vendor cells"):
        labels = read_labels(fov)
        present = np.unique(labels[labels > 0])
        top, left = placement.origin_px[fov]
        for cell, outline in outlines_of(labels, present).items():
            placed = shapely.transform(outline, lambda xy, left=left, top=top: (xy * placement.scale + [left, top]) * pixel_um)
            polygon = single(placed, counts)
            if polygon is not None:
                ids.append(cell_name(fov, cell))
                polygons.append(polygon)
    return ids, polygons, counts


def from_table(path: Path, placement: Placement, pixel_um: float) -> tuple[list[str], list[Any], dict[str, int]]:
    """Cells of `*-polygons.csv`: one row for each vertex, ring not closed, local pixels of the field of view.

    Raises
    ------
    InputError
        If the table is damaged or lacks a column.
    """
    names = tables.header(path)
    wanted = {"fov": ("fov",), "cell": ("cellID", "cell_ID"), "x": ("x_local_px",), "y": ("y_local_px",)}
    columns = {key: tables.find_column(names, *options) for key, options in wanted.items()}
    missing = [wanted[key][0] for key, column in columns.items() if column is None]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(names[:12])}.")
    cells: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for fov, cell, xy in _rings(path, columns):
        if fov not in placement.origin_px:
            continue
        name = cell_name(fov, cell)
        if name in cells:
            counts["repeated_id"] = counts.get("repeated_id", 0) + 1
            continue
        px, py = placement.mosaic_px(np.full(len(xy), fov), xy[:, 0], xy[:, 1])
        ring = np.column_stack([px, py])[np.isfinite(xy).all(axis=1)] * pixel_um
        polygon = single(shapely.Polygon(ring) if len(ring) >= 3 else None, counts)
        if polygon is not None:
            cells[name] = polygon
    return list(cells), list(cells.values()), counts


def _rings(path: Path, columns: dict[str, str]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(fov, cell, (n, 2) local pixels) of each run of rows of one cell; a run may reach over blocks."""
    rest = np.empty((0, 4))
    for block in tables.stream(path, {c: pa.float64() for c in columns.values()}):
        rows = np.column_stack([block.column(columns[k]).to_numpy() for k in ("fov", "cell", "x", "y")])
        rows = np.concatenate([rest, rows[np.isfinite(rows[:, :2]).all(axis=1)]])
        starts = np.flatnonzero(np.r_[True, (np.diff(rows[:, :2], axis=0) != 0).any(axis=1)]) if len(rows) else np.empty(0, int)
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            yield int(rows[start, 0]), int(rows[start, 1]), rows[start:end, 2:]
        rest = rows[starts[-1] :] if len(starts) else rows
    if len(rest):
        yield int(rest[0, 0]), int(rest[0, 1]), rest[:, 2:]
