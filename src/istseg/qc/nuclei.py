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
        part = of_overlaps(rules.from_polygons(nuclei[start : start + _CHUNK], cells), contain, intersect)
        result.contained += part.contained
        result.intersected += part.intersected
        result.containing_cells[start : start + _CHUNK] = part.containing_cells
        result.intersecting_cells[start : start + _CHUNK] = part.intersecting_cells
    return result


def of_overlaps(pairs: rules.Overlaps, contain: float = 0.95, intersect: float = 0.05) -> NucleusCounts:
    """Count from the overlaps of polygons or of label images."""
    n_nuclei, n_cells = len(pairs.nucleus_area), len(pairs.cell_area)
    hits = pairs.fraction >= contain, pairs.fraction > intersect
    by_cell = [np.bincount(pairs.cell[hit], minlength=n_cells).astype(np.int32) for hit in hits]
    by_nucleus = [np.bincount(pairs.nucleus[hit], minlength=n_nuclei).astype(np.int32) for hit in hits]
    return NucleusCounts(*by_cell, *by_nucleus)
