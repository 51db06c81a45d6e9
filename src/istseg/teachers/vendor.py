"""Teacher `vendor`: the instrument's own cells, rasterised; nuclei by the watershed teacher.

The vendor's cells are an automatic segmentation too. Rasterised cells do not overlap: where polygons do, the first cell of the file keeps the pixels.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from istseg.artifacts import cells as cells_file
from istseg.artifacts.files import sha256
from istseg.artifacts.sample import apply_affine
from istseg.artifacts.tiles import Tile
from istseg.errors import InputError
from istseg.teachers.base import CELLS, NUCLEI, Teacher
from istseg.teachers.watershed import Sizes, label_nuclei


class VendorTeacher(Teacher):
    """See the module.

    Parameters
    ----------
    path
        `vendor_cells.parquet` of convert.
    sizes
        Of the nuclei.

    Raises
    ------
    InputError
        If the file is missing or holds no cell.

    """

    name = "vendor"
    needs = ("the vendor's cells (vendor_cells.parquet of convert)",)

    def __init__(self, path: Path | None, sizes: Sizes):
        if path is None:
            raise InputError("the teacher `vendor` needs --vendor-cells; this sample has no cells of the vendor. Choose the teacher watershed or cellpose.")
        cells = cells_file.read(path)
        if cells.empty:
            raise InputError(f"{path}: holds no cell, so the teacher `vendor` cannot teach from it. Choose the teacher watershed or cellpose.")
        self.sizes = sizes
        self.sha256 = sha256(path)
        self.polygons = np.asarray(cells.geometry.values, object)
        self._tree = shapely.STRtree(self.polygons)

    @property
    def method(self) -> dict[str, Any]:
        """See `Teacher`."""
        return {"teacher": self.name, "vendor_cells_sha256": self.sha256, **asdict(self.sizes)}

    def label(self, tile: Tile) -> dict[str, np.ndarray]:
        """Layers `nuclei` and `cells_vendor`."""
        y0, x0, y1, x1 = tile.region
        corners = apply_affine(np.linalg.inv(tile.affine), np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))
        # Sorted: the tree gives no order, and the order decides overlaps.
        near = np.sort(self._tree.query(shapely.Polygon(corners)))
        cells = shapely.transform(self.polygons[near], lambda xy: apply_affine(tile.affine, xy))
        nucleus_stain = tile.normalised()[0]
        nuclei = label_nuclei(nucleus_stain, tile.working_um, self.sizes.nucleus_diameter_um, self.sizes.min_nucleus_area_um2)
        return {NUCLEI: nuclei, f"{CELLS}vendor": rasterise(cells, near + 1, tile.region)}


def rasterise(polygons: np.ndarray, labels: np.ndarray, region: tuple[int, int, int, int]) -> np.ndarray:
    """Label image of polygons: a pixel belongs to the first polygon that covers its centre.

    Parameters
    ----------
    polygons
        (n,) polygons or multi-polygons in the sample's working frame; missing and empty ones are skipped.
    labels
        (n,) positive numbers.
    region
        Box that the image covers.

    Returns
    -------
    int32 (y, x).

    """
    y0, x0, y1, x1 = region
    image = np.zeros((y1 - y0, x1 - x0), np.int32)
    for polygon, label in zip(polygons, labels, strict=True):
        if polygon is None or polygon.is_empty:
            continue
        left, top, right, bottom = polygon.bounds
        # A pixel's centre is at +0.5.
        rows = np.arange(max(int(np.ceil(top - 0.5)), y0), min(int(np.floor(bottom - 0.5)) + 1, y1))
        columns = np.arange(max(int(np.ceil(left - 0.5)), x0), min(int(np.floor(right - 0.5)) + 1, x1))
        if not len(rows) or not len(columns):
            continue
        shapely.prepare(polygon)
        inside = shapely.contains_xy(polygon, columns + 0.5, rows[:, None] + 0.5)
        part = image[rows[0] - y0 : rows[-1] + 1 - y0, columns[0] - x0 : columns[-1] + 1 - x0]
        part[inside & (part == 0)] = label
    return image
