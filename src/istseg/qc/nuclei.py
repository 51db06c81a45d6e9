"""How many nuclei each cell contains and intersects, for any segmentation [paper: Validation and metrics]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from istseg.curation import rules

_CHUNK = 50_000
"""Nuclei whose intersections are held at a time."""


@dataclass
class NucleusCounts:
    """Cells against nuclei.

    Attributes
    ----------
    contained, intersected
        int32 (cells,): nuclei of which at least `contain`, more than `intersect` of the area lies in the cell; contained ones are intersected too.
    containing_cells, intersecting_cells
        int32 (nuclei,): the same seen from the nucleus.

    """

    contained: np.ndarray
    intersected: np.ndarray
    containing_cells: np.ndarray
    intersecting_cells: np.ndarray


def valid_polygons(polygons: np.ndarray) -> np.ndarray:
    """The polygons with invalid ones repaired and missing ones empty; a vendor's files hold both."""
    polygons = np.array(polygons, dtype=object)
    polygons[shapely.is_missing(polygons)] = shapely.Polygon()
    broken = ~shapely.is_valid(polygons)
    if broken.any():
        polygons[broken] = shapely.make_valid(polygons[broken])
    return polygons


def count(nuclei: np.ndarray, cells: np.ndarray, contain: float = 0.95, intersect: float = 0.05) -> NucleusCounts:
    """Count by the share of each nucleus's area that lies in each cell.

    Parameters
    ----------
    nuclei, cells
        Valid polygons of one frame. Cells may overlap; a nucleus can be contained by several.
    contain, intersect
        T_contain (at least) and T_intersect (more than).

    """
    result = NucleusCounts(*(np.zeros(n, np.int32) for n in (len(cells), len(cells), len(nuclei), len(nuclei))))
    for start in range(0, len(nuclei), _CHUNK):
        pairs = rules.from_polygons(nuclei[start : start + _CHUNK], cells)
        for hit, of_cell, of_nucleus in (
            (pairs.fraction >= contain, result.contained, result.containing_cells),
            (pairs.fraction > intersect, result.intersected, result.intersecting_cells),
        ):
            of_cell += np.bincount(pairs.cell[hit], minlength=len(cells)).astype(np.int32)
            of_nucleus += np.bincount(pairs.nucleus[hit] + start, minlength=len(nuclei)).astype(np.int32)
    return result
