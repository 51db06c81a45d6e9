"""Do cells near borders look like all others? Near those of tiles they must: the result shall not depend on the tiling. Near those of the instrument's fields
of view they may differ where the stitching or the light is uneven.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile, TileIndex
from istseg.grid import Box

BORDER_UM = 10.0
_RASTER_UM = 2.0


def compare(tiles: Path, index: TileIndex, centroids_um: np.ndarray, area_um2: np.ndarray) -> dict[str, Any]:
    """Density and mean area of the cells within `BORDER_UM` of a border between tiles against those of all others.

    Only windows with tissue count, as area and as cells, so that empty parts of the slide do not speak.

    Returns
    -------
    `n_border`, `n_inside`, `density_ratio`, `area_ratio` (ratios None where one side has no area or no cell).

    """
    reach = BORDER_UM / index.working_um
    step = index.window_grid.stride * index.windows_per_side
    lines = [np.arange(step, size, step) for size in (index.window_grid.height, index.window_grid.width)]
    x, y = apply_affine(index.affine, centroids_um).T
    near = np.minimum(_distance(y, lines[0]), _distance(x, lines[1])) < reach
    counted = np.zeros(len(x), bool)
    border_area = inside_area = 0.0
    for record in index.tiles:
        tile = Tile.read(tiles / record["tile_id"])
        y0, x0, y1, x1 = tile.core
        owned = np.flatnonzero((y >= y0) & (y < y1) & (x >= x0) & (x < x1))
        for window in tile.windows:
            core = index.window_grid.core(*window)
            far = _far(core[0], core[2], lines[0], reach) * _far(core[1], core[3], lines[1], reach)
            inside_area += far
            border_area += (core[2] - core[0]) * (core[3] - core[1]) - far
            counted[owned[_within(core, x[owned], y[owned])]] = True
    return _ratios(counted & near, counted & ~near, (border_area, inside_area), area_um2)


def compare_fields(tiles: Path, index: TileIndex, boxes_wpx: np.ndarray, centroids_um: np.ndarray, area_um2: np.ndarray) -> dict[str, Any] | None:
    """The same at borders between fields of view: places within `BORDER_UM` of two fields. None with fewer than two fields.

    Parameters
    ----------
    boxes_wpx
        (fields, 4) y0, x0, y1, x1 in working pixels; fields may overlap, lie apart and differ in size. The mosaic's own edge is no border.

    Returns
    -------
    As `compare`; areas are counted on a raster of 2 µm.
    """
    if len(boxes_wpx) < 2:
        return None
    grid, reach = index.window_grid, BORDER_UM / index.working_um
    step = _RASTER_UM / index.working_um
    shape = int(np.ceil(grid.height / step)), int(np.ceil(grid.width / step))

    def cells_of(box: np.ndarray, grow: float) -> tuple[slice, slice]:
        low = np.clip(np.rint((box[:2] - grow) / step), 0, shape).astype(int)
        high = np.clip(np.rint((box[2:] + grow) / step), 0, shape).astype(int)
        return slice(low[0], high[0]), slice(low[1], high[1])

    # Twice is enough: whoever is within reach of two fields is near a border between them.
    covered = np.zeros(shape, np.uint8)
    for box in boxes_wpx:
        place = cells_of(box, reach)
        covered[place] = np.minimum(covered[place] + 1, 2)
    tissue = np.zeros(shape, bool)
    for record in index.tiles:
        for window in Tile.read(tiles / record["tile_id"]).windows:
            tissue[cells_of(np.array(grid.core(*window), float), 0)] = True
    x, y = apply_affine(index.affine, centroids_um).T
    row, column = (np.floor(v / step).astype(np.int64) for v in (y, x))
    counted = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    at = np.where(counted, row, 0), np.where(counted, column, 0)
    counted &= tissue[at]
    near = covered[at] > 1
    areas = float((tissue & (covered > 1)).sum()), float((tissue & (covered == 1)).sum())
    return _ratios(counted & near, counted & (covered[at] == 1), areas, area_um2)


def _ratios(border: np.ndarray, inside: np.ndarray, areas: tuple[float, float], area_um2: np.ndarray) -> dict[str, Any]:
    """Figures of cells at borders and of all others, whose areas (any unit) are `areas`."""
    n_border, n_inside = int(border.sum()), int(inside.sum())
    result: dict[str, Any] = {"n_border": n_border, "n_inside": n_inside, "density_ratio": None, "area_ratio": None}
    if areas[0] and n_inside:
        result["density_ratio"] = float(n_border / areas[0] / (n_inside / areas[1]))
    if n_border and n_inside:
        result["area_ratio"] = float(area_um2[border].mean() / area_um2[inside].mean())
    return result


def _distance(values: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """(n,) distance to the nearest line."""
    if not len(lines):
        return np.full(len(values), np.inf)
    after = np.searchsorted(lines, values)
    return np.minimum(np.abs(values - lines[np.maximum(after - 1, 0)]), np.abs(values - lines[np.minimum(after, len(lines) - 1)]))


def _far(low: float, high: float, lines: np.ndarray, reach: float) -> float:
    """Length of [low, high) that is at least `reach` away from every line; lines are further apart than twice the reach."""
    covered = np.minimum(lines + reach, high) - np.maximum(lines - reach, low)
    return high - low - float(covered[covered > 0].sum())


def _within(box: Box, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])
